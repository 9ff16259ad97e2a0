"""How many weights may be nonzero, and the exact selection of which, on CPU, GPU and shards."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
