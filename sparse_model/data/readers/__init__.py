"""Documents out of files: Python sources that are installed here, texts behind any URI."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
