"""Many processes as one: what workers tell each other, and a model spread over them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
