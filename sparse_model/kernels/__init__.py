"""Programs for a GPU, written in Triton, and how they are compiled on a machine that has none."""
