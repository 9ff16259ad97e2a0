"""Studies on Ray: search, trials, the frontier, the command line. Only its room `engine` imports ray."""

import lazy_loader

from sparse_model import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
