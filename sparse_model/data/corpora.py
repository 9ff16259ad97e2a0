"""Documents of a corpus: sources read in a seeded order, cut to size, mixed in proportion, split by hash."""

import hashlib
import platform
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from sparse_model.data.config import GENERATED, PYTHON_FILES, CorpusConfig, SourceConfig
from sparse_model.data.idioms import programs
from sparse_model.data.python_files import python_files, read_python
from sparse_model.data.text_files import read_texts, text_files
from sparse_model.errors import InputError

MEGABYTE = 1_000_000
FINGERPRINT_PROGRAMS = 500  # about half a megabyte: no change of the generator leaves all of them alone

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


@dataclass(frozen=True)
class SourceInputs:
    """What a source is made of now: a hash that changes with it, and roughly how many bytes it will give."""

    fingerprint: str
    expected_bytes: int


def documents(source: SourceConfig, corpus: CorpusConfig) -> Iterator[str]:
    """Documents of one source, at most `source.megabytes` of them, in an order fixed by `corpus.seed`.

    Files come in shuffled order, so that a limit takes a random sample of them (rows of a .jsonl or .parquet
    file stay in order). Blank documents are left out, none is cut. Raises InputError for a source that is
    missing, unreadable or without any text.
    """
    limit = None if source.megabytes is None else source.megabytes * MEGABYTE
    used = 0
    for text in _unlimited(source, corpus):
        if not text.strip():
            continue
        size = len(text.encode("utf-8"))
        if limit is not None and used + size > limit:
            break
        used += size
        yield text
    if used == 0:
        limited = "" if limit is None else f" in documents of at most {source.megabytes} MB"
        raise InputError(f"source {source.source!r} is empty: it has no text{limited}")


def mixed_documents(corpus: CorpusConfig, inputs: list[SourceInputs]) -> Iterator[str]:
    """Documents of all sources, interleaved so that any beginning holds them in proportion to their size."""
    assert len(inputs) == len(corpus.sources)
    streams = [documents(source, corpus) for source in corpus.sources]
    done = [0.0] * len(streams)  # share of each source already given
    active = list(range(len(streams)))
    while active:
        index = min(active, key=lambda i: done[i])
        text = next(streams[index], None)
        if text is None:
            active.remove(index)
            continue
        done[index] += len(text.encode("utf-8")) / inputs[index].expected_bytes
        yield text


def split_of(text: str, heldout_fraction: float) -> Split:
    """The side of the split a document is on: its text alone decides, so copies are never on both sides."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") < heldout_fraction * 2**64 else "train"


def source_inputs(source: SourceConfig, corpus: CorpusConfig) -> SourceInputs:
    """Fingerprint of what `documents` would read now, without reading more than it must.

    Generated programs: the first ones. Python files: interpreter version, names and contents. A URI: paths,
    sizes and contents (as the store tags them, where it does).
    """
    if source.source == GENERATED:
        assert source.megabytes is not None
        sample = list(islice(programs(corpus.seed), FINGERPRINT_PROGRAMS))
        return SourceInputs(_hash(sample), int(source.megabytes * MEGABYTE))
    if source.source in PYTHON_FILES:
        found = python_files(source.source)
        entries = [platform.python_version(), *(f"{file.name} {file.content_hash()}" for file in found)]
        size = sum(file.path.stat().st_size for file in found)
    else:
        files = text_files(source.source)
        entries = [f"{file.path} {file.size} {file.content_hash()}" for file in files]
        size = sum(file.size for file in files)
    limit = size if source.megabytes is None else min(size, int(source.megabytes * MEGABYTE))
    return SourceInputs(_hash(entries), max(1, limit))


def _unlimited(source: SourceConfig, corpus: CorpusConfig) -> Iterator[str]:
    order = random.Random(f"{corpus.seed} {source.source}")
    if source.source == GENERATED:
        yield from programs(corpus.seed)
    elif source.source in PYTHON_FILES:
        found = python_files(source.source)
        order.shuffle(found)
        yield from read_python(found)
    else:
        files = text_files(source.source)
        order.shuffle(files)
        yield from read_texts(files, corpus.text_field)


def _hash(entries: list[str]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(hashlib.sha256(entry.encode("utf-8")).digest())
    return digest.hexdigest()
