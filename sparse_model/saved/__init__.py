"""Models on disk: ours, and those that the authors of the paper released."""
