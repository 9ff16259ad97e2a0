"""What a trial is: where its things go, the circuits of one task of its model, its rows. Nothing of Ray."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
