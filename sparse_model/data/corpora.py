"""Documents of a corpus: what its sources hold, cut into parts that can be read independently, mixed, split by hash.

The cut is a function of the sources alone: whoever reads the parts, in whatever order, reads the same documents.
"""

import hashlib
import math
import platform
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Literal, TypeVar

from sparse_model.data.config import GENERATED, PACKAGE, CorpusConfig, SourceConfig
from sparse_model.data.idioms.programs import IDIOMS_VERSION, programs
from sparse_model.data.readers.long_texts import cut
from sparse_model.data.readers.python_files import PythonFile, python_files, read_python
from sparse_model.data.readers.tally import Tally
from sparse_model.data.readers.text_files import TextPiece, pieces, read_texts
from sparse_model.data.readers.uri_files import TextFile, listed
from sparse_model.errors import InputError

MEGABYTE = 1_000_000
PART_BYTES = 32 * MEGABYTE  # of text: some seconds of work for one core, and about ten million tokens
PIECES = 8  # that a large file has in each part: runs of pieces of about equal size are mixtures of about equal shares
SAMPLES = 64  # places that a limit takes text from, where a file is large
PASSES = 4  # over a large group of rows, every one of which gives rows from all of it, to fill a limit
NEARLY = 0.01  # of a limit: with less than that left, it is filled
MISSES = 1000  # documents in a row that do not fit into what is left of a limit, until it counts as filled
FINGERPRINT_PROGRAMS = 500  # about half a megabyte: no change of the generator leaves all of them alone

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

Item = TypeVar("Item", PythonFile, TextPiece)


@dataclass(frozen=True)
class SourceInputs:
    """What a source is made of now: a hash that changes with it, roughly how many bytes it will give, its files.

    `text` is the hash of the text alone, where the other has the version of the program that reads it as well.
    """

    source: SourceConfig
    fingerprint: str
    expected_bytes: int
    text: str
    python: tuple[PythonFile, ...] = ()
    texts: tuple[TextFile, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """A part's share of one source: a stream of programs, or files (pieces of large ones) in the order of reading."""

    source: SourceConfig
    limit: float | None
    expected_bytes: int
    stream: int | str | None = None
    python: tuple[PythonFile, ...] = ()
    texts: tuple[TextPiece, ...] = ()


@dataclass(frozen=True)
class Part:
    """What is tokenised in one go: a slice of every source, so that each part is a sample of the whole mixture."""

    index: int
    slices: tuple[Slice, ...]

    @property
    def expected_bytes(self) -> int:
        return sum(piece.expected_bytes for piece in self.slices)


def source_inputs(source: SourceConfig, corpus: CorpusConfig) -> SourceInputs:
    """What `parts` would cut up now, found without reading more than it must.

    The fingerprint covers, of generated programs, their version and the first ones; of Python files, names and
    contents, and the interpreter's version unless they are of one package; of a URI, names below the source, sizes and
    contents (as the store tags them, where it does: then nothing is read). So the same files elsewhere are the same
    source. Raises InputError for a source that is missing or unreadable.
    """
    limit = math.inf if source.megabytes is None else source.megabytes * MEGABYTE
    if source.source == GENERATED:
        first = [f"{GENERATED} {IDIOMS_VERSION}", *islice(programs(corpus.seed), FINGERPRINT_PROGRAMS)]
        return SourceInputs(source, _hash(first), int(limit), _hash(first))
    if source.is_python:
        python = tuple(python_files(source.source))
        version = "" if PACKAGE.fullmatch(source.source) else platform.python_version()
        files = [f"{file.name} {file.digest}" for file in python]
        size = min(limit, sum(file.size for file in python))
        return SourceInputs(source, _hash([version, *files]), max(1, int(size)), _hash(files), python=python)
    found = listed(source.source)
    entries = [f"{file.name} {file.stored} {file.content_hash()}" for file in found.files]
    size = min(limit, sum(file.size for file in found.files))
    text = _hash(entries)
    return SourceInputs(source, text, max(1, int(size)), text, texts=found.files, left_out=found.left_out)


def parts(corpus: CorpusConfig, inputs: Sequence[SourceInputs], part_bytes: int = PART_BYTES) -> list[Part]:
    """The corpus in parts of about `part_bytes` of text.

    Files come in an order shuffled by `corpus.seed`, large ones cut into pieces where their rows or lines allow it, so
    that a limit takes a random sample of them (rows within a piece stay in order). Each part has its share of a limit.
    Copies of a Python file count once in the whole corpus; rows and files of a URI count as they are.
    """
    count = max(1, math.ceil(sum(source.expected_bytes for source in inputs) / part_bytes))
    slices = [_slices(source, corpus, count, part_bytes) for source in inputs]
    return [Part(index, share) for index, share in enumerate(zip(*slices, strict=True))]


def documents(source: SourceConfig, corpus: CorpusConfig) -> Iterator[str]:
    """Documents of one source, at most `source.megabytes` of them, read as one part.

    Blank documents are left out, long ones cut (`readers.long_texts`). Raises InputError for a source that is missing,
    unreadable or empty, or too much of which is no text.
    """
    (whole,) = _slices(source_inputs(source, corpus), corpus, 1, PART_BYTES)
    tally = Tally()
    yield from _documents(whole, corpus, tally)
    if problem := tally.report().problem(source):
        raise InputError(problem)
    if not tally.bytes:
        raise InputError(empty_source(source))


def mixed_documents(
    part: Part, corpus: CorpusConfig, tallies: Sequence[Tally] | None = None
) -> Iterator[tuple[int, str]]:
    """(index of the source, text) of a part's documents: any beginning has the sources in proportion to their size.

    What each source gave, and what in it was no text, is counted in `tallies`, one a source.
    """
    counted = [Tally() for _ in part.slices] if tallies is None else tallies
    streams = [_documents(piece, corpus, tally) for piece, tally in zip(part.slices, counted, strict=True)]
    done = [0.0] * len(streams)  # share of each slice already given
    active = list(range(len(streams)))
    while active:
        index = min(active, key=lambda i: done[i])
        text = next(streams[index], None)
        if text is None:
            active.remove(index)
            continue
        done[index] += len(text.encode("utf-8")) / part.slices[index].expected_bytes
        yield index, text


def mixture(corpus: CorpusConfig) -> Iterator[str]:
    """Documents of the whole corpus, part after part, in the order in which they are tokenised."""
    for part in parts(corpus, [source_inputs(source, corpus) for source in corpus.sources]):
        for _, text in mixed_documents(part, corpus):
            yield text


def split_of(text: str, heldout_fraction: float) -> Split:
    """The side of the split a document is on: its text alone decides, so copies are never on both sides."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") < heldout_fraction * 2**64 else "train"


def empty_source(source: SourceConfig) -> str:
    """What is said of a source that gave no document."""
    limited = "" if source.megabytes is None else f" in documents of at most {source.megabytes} MB"
    return f"source {source.source!r} is empty: it has no text{limited}"


def _slices(inputs: SourceInputs, corpus: CorpusConfig, count: int, part_bytes: int) -> list[Slice]:
    """A source in `count` slices, some of them perhaps empty where it has fewer files."""
    source = inputs.source
    if source.source == GENERATED:
        streams: list[int | str] = [corpus.seed, *(f"{corpus.seed} part {index}" for index in range(1, count))]
        share = inputs.expected_bytes / count
        return [Slice(source, share, max(1, int(share)), stream=stream) for stream in streams]
    # where the files are does not matter
    order = random.Random(f"{corpus.seed} {'files' if source.is_files else source.source}")
    if source.is_python:
        python = list(inputs.python)
        order.shuffle(python)
        first = {file.digest: file for file in reversed(python)}  # of copies, the first in that order
        runs = _runs([file for file in python if first[file.digest] is file], count)
        return [Slice(source, *_share(inputs, share), python=tuple(run)) for run, share in runs]
    cuts = [piece for file in inputs.texts for piece in _pieces(file, inputs, count, part_bytes)]
    order.shuffle(cuts)
    return [Slice(source, *_share(inputs, share), texts=tuple(run)) for run, share in _runs(cuts, count)]


def _pieces(file: TextFile, inputs: SourceInputs, count: int, part_bytes: int) -> list[TextPiece]:
    """A file in pieces of which each part has several, and a limit takes many."""
    size = max(1, part_bytes // PIECES)
    sampled = inputs.expected_bytes < sum(file.size for file in inputs.texts)
    if sampled:
        samples = PASSES if file.extension == ".parquet" else SAMPLES
        size = min(size, max(1, inputs.expected_bytes // count // samples))
    return pieces(file, size, sampled=sampled)


def _runs(items: Sequence[Item], count: int) -> list[tuple[list[Item], float]]:
    """Items in `count` runs of about equal size, in order, each with its share of all bytes."""
    runs: list[list[Item]] = [[] for _ in range(count)]
    total = max(1, sum(item.size for item in items))
    start = 0
    for item in items:
        runs[min(start * count // total, count - 1)].append(item)
        start += item.size
    return [(run, sum(item.size for item in run) / total) for run in runs]


def _share(inputs: SourceInputs, share: float) -> tuple[float | None, int]:
    """Limit and expected bytes of a slice."""
    megabytes = inputs.source.megabytes
    return None if megabytes is None else megabytes * MEGABYTE * share, max(1, int(inputs.expected_bytes * share))


def _documents(piece: Slice, corpus: CorpusConfig, tally: Tally) -> Iterator[str]:
    """Documents of bounded size up to the limit: one that does not fit is passed over while there is room left."""
    used, misses = 0, 0
    limit = math.inf if piece.limit is None else piece.limit
    for text in chain.from_iterable(map(cut, _unlimited(piece, corpus, tally))):
        if not text.strip():
            continue
        size = len(text.encode("utf-8"))
        if used + size <= limit:
            used, misses = used + size, 0
            tally.give(size)
            yield text
            continue
        misses += 1
        if piece.stream is not None or limit - used < NEARLY * limit or misses == MISSES:
            break


def _unlimited(piece: Slice, corpus: CorpusConfig, tally: Tally) -> Iterator[str]:
    if piece.stream is not None:
        yield from programs(piece.stream)
    yield from read_python(piece.python, any_version=PACKAGE.fullmatch(piece.source.source) is not None)
    yield from read_texts(piece.texts, piece.source.text_field or corpus.text_field, tally)


def _hash(entries: list[str]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(hashlib.sha256(entry.encode("utf-8", "surrogateescape")).digest())
    return digest.hexdigest()
