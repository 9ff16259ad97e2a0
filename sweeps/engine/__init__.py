"""Studies on Ray: runner, trial, training, pruning, tokens, session, lease, submission."""
