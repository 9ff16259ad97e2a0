"""Text to tokens: corpora, the tokenizer, token datasets and their batches."""

from sparse_model.data.config import CorpusConfig, SourceConfig, TokenizerConfig
from sparse_model.data.corpora import Split, documents, split_of
from sparse_model.data.loader import TokenDataset
from sparse_model.data.shards import prepare
from sparse_model.data.tokenizer import Tokenizer

__all__ = [
    "CorpusConfig",
    "SourceConfig",
    "Split",
    "TokenDataset",
    "Tokenizer",
    "TokenizerConfig",
    "documents",
    "prepare",
    "split_of",
]
