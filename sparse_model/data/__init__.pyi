from .config import CorpusConfig as CorpusConfig, SourceConfig as SourceConfig, TokenizerConfig as TokenizerConfig
from .corpora import Split as Split, documents as documents, split_of as split_of
from .idioms.programs import programs as programs
from .loader import TokenDataset as TokenDataset
from .shards import prepare as prepare
from .tokenizer import Tokenizer as Tokenizer
