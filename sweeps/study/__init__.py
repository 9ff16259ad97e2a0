"""What is asked: the study file, the space in it, its mistakes, the shipped studies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
