"""From a corpus to a token dataset on disk or in an object store, made once per content.

Layout below the root: data/<key>/ with tokenizer.json, train-00000.npy …, heldout-00000.npy … and manifest.json,
written last. A dataset is a function of its key: processes that make the same one at once write the same bytes.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from itertools import chain, islice

import numpy as np
import numpy.typing as npt
import tokenizers

from sparse_model.data.config import CorpusConfig, TokenizerConfig
from sparse_model.data.corpora import (
    MEGABYTE,
    SPLITS,
    SourceInputs,
    Split,
    mixed_documents,
    source_inputs,
    split_of,
)
from sparse_model.data.loader import TOKENIZER_FILE, TokenDataset
from sparse_model.data.manifest import File, Manifest, Shard, SplitManifest, is_complete, write_manifest
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.storage import check_writable, join, remove, write_bytes_atomic

FORMAT = 1  # raise when the same configuration and input would give other tokens
SHARD_TOKENS = 16 * 2**20
FEWEST_TOKENS = 1024  # of a split: a loss measured on less means nothing
BATCH_BYTES = 2 * MEGABYTE  # of text encoded at once: enough for all cores, little memory

Progress = Callable[[str, float], None]


def prepare(
    corpus: CorpusConfig, tokenizer: TokenizerConfig, root: str, progress: Progress | None = None
) -> TokenDataset:
    """The token dataset of a corpus below `root` (any fsspec URI), made now unless it is there already.

    `progress` is told the stage ("corpus", "tokenizer", "tokens") and the share of it done, in [0, 1]. A changed
    input or configuration makes a new dataset; one that was interrupted is made again. Raises InputError for
    unusable input, too little text, or a root that cannot be written.
    """
    report = progress or _silent
    inputs = _inspect(corpus, report)
    key = _key(corpus, tokenizer, inputs)
    folder = join(root, "data", key)
    if not is_complete(folder):
        check_writable(root)
        texts, trained = _train_tokenizer(corpus, tokenizer, inputs, report)
        splits = _write_tokens(folder, corpus, texts, trained, inputs, report)
        _refuse_unusable(folder, corpus, inputs, splits)
        vocabulary = _write_file(folder, TOKENIZER_FILE, trained.to_json().encode("utf-8"))
        manifest = Manifest(
            key=key,
            corpus=corpus,
            tokenizer_config=tokenizer,
            tokenizer=vocabulary,
            train=splits["train"],
            heldout=splits["heldout"],
        )
        write_manifest(folder, manifest)
    return TokenDataset.open(folder)


def _silent(stage: str, share: float) -> None:
    pass


def _inspect(corpus: CorpusConfig, report: Progress) -> list[SourceInputs]:
    inputs = []
    for done, source in enumerate(corpus.sources):
        report("corpus", done / len(corpus.sources))
        inputs.append(source_inputs(source, corpus))
    report("corpus", 1.0)
    return inputs


def _key(corpus: CorpusConfig, tokenizer: TokenizerConfig, inputs: list[SourceInputs]) -> str:
    parts = [
        str(FORMAT),
        tokenizers.__version__,
        corpus.model_dump_json(),
        tokenizer.model_dump_json(),
        *(source.fingerprint for source in inputs),
    ]
    return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()[:16]


def _train_tokenizer(
    corpus: CorpusConfig, config: TokenizerConfig, inputs: list[SourceInputs], report: Progress
) -> tuple[Iterator[str], Tokenizer]:
    """A tokenizer trained on the first training documents, and all documents, those first ones kept in memory."""
    report("tokenizer", 0.0)
    texts = mixed_documents(corpus, inputs)
    first: list[str] = []
    size = 0
    for text in texts:
        first.append(text)
        size += len(text)
        if size >= config.training_megabytes * MEGABYTE:
            break
    trained = Tokenizer.train((text for text in first if split_of(text, corpus.heldout_fraction) == "train"), config)
    report("tokenizer", 1.0)
    return chain(first, texts), trained


def _write_tokens(
    folder: str,
    corpus: CorpusConfig,
    texts: Iterator[str],
    tokenizer: Tokenizer,
    inputs: list[SourceInputs],
    report: Progress,
) -> dict[Split, SplitManifest]:
    writers = {split: _ShardWriter(folder, split) for split in SPLITS}
    expected = sum(source.expected_bytes for source in inputs)
    done = 0
    for group in _grouped(texts):
        for text, ids in zip(group, tokenizer.encode_batch(group), strict=True):
            size = len(text.encode("utf-8"))
            writers[split_of(text, corpus.heldout_fraction)].add([*ids, tokenizer.eot], size)
            done += size
        report("tokens", min(1.0, done / expected))
    report("tokens", 1.0)
    return {split: writer.finish() for split, writer in writers.items()}


def _grouped(texts: Iterator[str]) -> Iterator[list[str]]:
    """Consecutive texts in lists of about BATCH_BYTES."""
    for first in texts:
        group, size = [first], len(first)
        while size < BATCH_BYTES and (more := list(islice(texts, 1))):
            group += more
            size += len(more[0])
        yield group


class _ShardWriter:
    """Collects the tokens of a split and writes a shard whenever one is full."""

    def __init__(self, folder: str, split: Split) -> None:
        self._folder = folder
        self._split = split
        self._parts: list[npt.NDArray[np.uint16]] = []
        self._waiting = 0
        self._shards: list[Shard] = []
        self._documents = 0
        self._text_bytes = 0

    def add(self, ids: list[int], text_bytes: int) -> None:
        self._documents += 1
        self._text_bytes += text_bytes
        self._parts.append(np.array(ids, dtype=np.uint16))
        self._waiting += len(ids)
        if self._waiting >= SHARD_TOKENS:
            tokens = np.concatenate(self._parts)
            whole = len(tokens) // SHARD_TOKENS * SHARD_TOKENS
            for start in range(0, whole, SHARD_TOKENS):
                self._write(tokens[start : start + SHARD_TOKENS])
            self._parts, self._waiting = [tokens[whole:]], len(tokens) - whole

    def finish(self) -> SplitManifest:
        if self._waiting:
            self._write(np.concatenate(self._parts))
        return SplitManifest(shards=tuple(self._shards), documents=self._documents, text_bytes=self._text_bytes)

    def _write(self, tokens: npt.NDArray[np.uint16]) -> None:
        content = io.BytesIO()
        np.save(content, tokens, allow_pickle=False)
        name = f"{self._split}-{len(self._shards):05d}.npy"
        file = _write_file(self._folder, name, content.getvalue())
        self._shards.append(Shard(tokens=len(tokens), **file.model_dump()))


def _write_file(folder: str, name: str, content: bytes) -> File:
    write_bytes_atomic(join(folder, name), content)
    return File(name=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _refuse_unusable(
    folder: str, corpus: CorpusConfig, inputs: list[SourceInputs], splits: dict[Split, SplitManifest]
) -> None:
    """Leave nothing behind of a dataset that must not be used."""
    problem = _too_small(corpus, splits) or _changed_input(corpus, inputs)
    if problem is not None:
        remove(folder)
        raise InputError(problem)


def _too_small(corpus: CorpusConfig, splits: dict[Split, SplitManifest]) -> str | None:
    for split, written in splits.items():
        if written.tokens < FEWEST_TOKENS:
            return (
                f"corpus: the {split} split has {written.tokens} tokens from {written.documents} documents, "
                f"at least {FEWEST_TOKENS} are needed: give more text or another heldout_fraction "
                f"(now {corpus.heldout_fraction})"
            )
    return None


def _changed_input(corpus: CorpusConfig, inputs: list[SourceInputs]) -> str | None:
    for source, before in zip(corpus.sources, inputs, strict=True):
        if source_inputs(source, corpus).fingerprint != before.fingerprint:
            return f"source {source.source!r} changed while it was read: run again once it is still"
    return None
