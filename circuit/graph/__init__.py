"""The circuit as an object: its record and JSON, its edges in a model, networkx."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
