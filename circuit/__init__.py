"""Circuits: tasks, pruning a model to the nodes that do one, proofs, a circuit run. Nothing here knows of Ray."""

import lazy_loader

from sparse_model import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
