"""The circuit as an object: its record and JSON, its edges in a model, networkx."""
