"""What is asked: the study file, the space in it, its mistakes, the shipped studies."""
