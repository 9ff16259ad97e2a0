"""The commands, one function each; a function's docstring is its help text."""
