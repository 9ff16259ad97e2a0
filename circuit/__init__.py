"""Circuits: tasks, pruning a model to the nodes that do one, graphs, proofs. Nothing here knows of Ray."""
