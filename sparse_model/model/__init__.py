"""What a forward pass is made of: configuration, transformer, node sites, attention, AbsTopK, loss."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
