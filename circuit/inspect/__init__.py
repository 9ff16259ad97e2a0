"""A circuit run, changed and compared: when its nodes are active, and what they do."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
