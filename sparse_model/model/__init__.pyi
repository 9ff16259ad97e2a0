from .config import ModelConfig as ModelConfig, TrainConfig as TrainConfig
from .sites import site_names as site_names, site_width as site_width
from .transformer import SparseTransformer as SparseTransformer
