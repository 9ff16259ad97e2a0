"""Every proof that a circuit can pass or fail, and the words for it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
