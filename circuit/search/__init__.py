"""How the smallest circuit of a task is looked for: masks, discretising, elimination, and ways to compare them with."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
