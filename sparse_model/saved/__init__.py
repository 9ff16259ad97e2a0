"""Models on disk: ours, and those that the authors of the paper released."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
