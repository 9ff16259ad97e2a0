"""Weight-sparse transformers: the model and how it is trained. Needs torch, nothing of Ray or of circuits."""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
