"""How a model is trained: the loop, the optimiser step, checkpoints, measures."""
