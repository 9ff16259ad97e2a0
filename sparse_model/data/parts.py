"""One part of a corpus to token shards: the unit in which tokens are made, in parallel and after an interruption.

A part gives the same files whoever makes it, so that two processes that make the same one do no harm. Its record,
written last, says that it is done.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparse_model.data.config import CorpusConfig
from sparse_model.data.corpora import MEGABYTE, SPLITS, Part, Split, mixed_documents, split_of
from sparse_model.data.manifest import File, Shard, SplitManifest
from sparse_model.data.readers.tally import SourceReport, Tally
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.storage.files import join, listdir, read_bytes, sizes, write_bytes_atomic

RECORDS = "parts"
SHARD_TOKENS = 16 * 2**20  # at most: a part of compressed text may be longer than its files are
BATCH_BYTES = 2 * MEGABYTE  # of text encoded at once: enough for all cores, little memory
REQUESTS = 16  # records read at a time

Document = tuple[int, str]
"""Index of the source, and the text."""


class PartRecord(BaseModel):
    """What came of a part."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=0, description="which part")
    train: SplitManifest = Field(description="its training tokens")
    heldout: SplitManifest = Field(description="its held-out tokens")
    sources: tuple[SourceReport, ...] = Field(description="what each source gave, and what in it was no text")

    def split(self, split: Split) -> SplitManifest:
        return self.train if split == "train" else self.heldout


@dataclass(frozen=True)
class Tokenising:
    """The work on a part: a function that can be sent to other processes and machines."""

    folder: str
    corpus: CorpusConfig
    tokenizer: Tokenizer

    def __call__(self, part: Part) -> PartRecord:
        """Write the part's shards, then its record. Raises InputError for input or storage that cannot be used."""
        tallies = [Tally() for _ in part.slices]
        record = self.of(part, mixed_documents(part, self.corpus, tallies), tallies)
        write_bytes_atomic(_record_uri(self.folder, part.index), record.model_dump_json().encode())
        return record

    def of(
        self,
        part: Part,
        documents: Iterable[Document],
        tallies: Sequence[Tally],
        report: Callable[[float], None] = lambda share: None,
    ) -> PartRecord:
        """Write the shards only, of documents at hand, which `tallies` count; `report` is told the share done."""
        writers = {split: _ShardWriter(self.folder, f"{split}-{part.index:05d}") for split in SPLITS}
        used = 0
        for group in _grouped(iter(documents)):
            encoded = self.tokenizer.encode_batch([text for _, text in group])
            for (_, text), ids in zip(group, encoded, strict=True):
                size = len(text.encode("utf-8"))
                used += size
                writers[split_of(text, self.corpus.heldout_fraction)].add([*ids, self.tokenizer.eot], size)
            report(min(1.0, used / part.expected_bytes))
        report(1.0)
        splits = {split: writer.finish() for split, writer in writers.items()}
        return PartRecord(index=part.index, sources=tuple(tally.report() for tally in tallies), **splits)


def finished_parts(folder: str, parts: Sequence[Part]) -> list[PartRecord]:
    """Records of parts that an earlier, interrupted preparation has finished, all of whose shards are there whole."""
    names = set(listdir(join(folder, RECORDS)))
    found = [part.index for part in parts if f"{part.index:05d}.json" in names]
    if not found:
        return []
    files = sizes(folder)
    with ThreadPoolExecutor(REQUESTS) as pool:
        records = pool.map(lambda index: _read_record(folder, index), found)
        return [record for record in records if record and _is_whole(record, files)]


def _is_whole(record: PartRecord, files: Mapping[str, int]) -> bool:
    return all(files.get(shard.name) == shard.bytes for split in SPLITS for shard in record.split(split).shards)


def merged(records: Iterable[PartRecord], split: Split) -> SplitManifest:
    """One side of the dataset that the parts make up together."""
    sides = [record.split(split) for record in sorted(records, key=lambda record: record.index)]
    return SplitManifest(
        shards=tuple(shard for side in sides for shard in side.shards),
        documents=sum(side.documents for side in sides),
        text_bytes=sum(side.text_bytes for side in sides),
    )


def write_file(folder: str, name: str, content: bytes) -> File:
    """Write a file of the dataset; what the manifest says of it."""
    write_bytes_atomic(join(folder, name), content)
    return file_of(name, content)


def file_of(name: str, content: bytes) -> File:
    return File(name=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _record_uri(folder: str, index: int) -> str:
    return join(folder, RECORDS, f"{index:05d}.json")


def _read_record(folder: str, index: int) -> PartRecord | None:
    """None for a record that cannot be used."""
    try:
        return PartRecord.model_validate_json(read_bytes(_record_uri(folder, index)))
    except (InputError, ValidationError):
        return None


def _grouped(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Consecutive documents in lists of about BATCH_BYTES."""
    for first in documents:
        group, size = [first], len(first[1])
        while size < BATCH_BYTES and (more := list(islice(documents, 1))):
            group += more
            size += len(more[0][1])
        yield group


class _ShardWriter:
    """Collects the tokens of a split and writes a shard whenever one is full."""

    def __init__(self, folder: str, name: str) -> None:
        self._folder = folder
        self._name = name
        self._chunks: list[npt.NDArray[np.uint16]] = []
        self._waiting = 0
        self._shards: list[Shard] = []
        self._documents = 0
        self._text_bytes = 0

    def add(self, ids: list[int], text_bytes: int) -> None:
        self._documents += 1
        self._text_bytes += text_bytes
        self._chunks.append(np.array(ids, dtype=np.uint16))
        self._waiting += len(ids)
        if self._waiting >= SHARD_TOKENS:
            tokens = np.concatenate(self._chunks)
            whole = len(tokens) // SHARD_TOKENS * SHARD_TOKENS
            for start in range(0, whole, SHARD_TOKENS):
                self._write(tokens[start : start + SHARD_TOKENS])
            self._chunks, self._waiting = [tokens[whole:]], len(tokens) - whole

    def finish(self) -> SplitManifest:
        if self._waiting:
            self._write(np.concatenate(self._chunks))
        return SplitManifest(shards=tuple(self._shards), documents=self._documents, text_bytes=self._text_bytes)

    def _write(self, tokens: npt.NDArray[np.uint16]) -> None:
        content = io.BytesIO()
        np.save(content, tokens, allow_pickle=False)
        number = f".{len(self._shards)}" if self._shards else ""
        file = write_file(self._folder, f"{self._name}{number}.npy", content.getvalue())
        self._shards.append(Shard(tokens=len(tokens), **file.model_dump()))
