"""Studies on Ray: runner, trial, training, pruning, tokens, session, lease, submission."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
