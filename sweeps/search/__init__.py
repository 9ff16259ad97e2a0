"""What is tried: draws, sampler, warm start, objectives, importances."""
