from .data.config import CorpusConfig as CorpusConfig, SourceConfig as SourceConfig, TokenizerConfig as TokenizerConfig
from .data.loader import TokenDataset as TokenDataset
from .data.shards import prepare as prepare
from .data.tokenizer import Tokenizer as Tokenizer
from .errors import InputError as InputError
from .model.config import ModelConfig as ModelConfig, TrainConfig as TrainConfig
from .model.transformer import SparseTransformer as SparseTransformer
from .saved.openai import load_openai as load_openai
from .saved.pretrained import from_pretrained as from_pretrained, save_pretrained as save_pretrained
from .training.checkpoint import Checkpoints as Checkpoints
from .training.loop import train as train

__version__: str
