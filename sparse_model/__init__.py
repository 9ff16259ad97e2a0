"""Weight-sparse transformers: the model and how it is trained. Needs torch, nothing of Ray or of circuits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
