"""Where people watch runs: Tune's callbacks for TensorBoard, MLflow and Weights & Biases, and their files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
