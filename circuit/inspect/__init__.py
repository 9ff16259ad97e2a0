"""A circuit run, changed and compared: when its nodes are active, and what they do."""
