"""Studies on Ray: search, trials, the frontier, the command line. The only package that imports ray."""
