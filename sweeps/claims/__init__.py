"""The paper's claims, each judged by a rule on an interval that is computed from rows alone."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
