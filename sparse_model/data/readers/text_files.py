"""Documents in files named by a URI: .py and .txt hold one each, .jsonl and .parquet one per row.

All is streamed: of a file with rows a few megabytes are in memory at a time, of the others a few files.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import PurePosixPath
from typing import Any

import pyarrow.parquet

from sparse_model.errors import InputError
from sparse_model.storage.files import contents, filesystem, refusing

EXTENSIONS = (".py", ".txt", ".jsonl", ".parquet")
# What drivers call a tag of the content. Times are none: two writes can fall into one tick of the clock.
TAG_FIELDS = ("ETag", "etag", "blob_id", "md5Hash")
ROWS_AT_ONCE = 1024
READ_AHEAD = 2 * 2**20  # of a file in an object store, which would else fetch tens of megabytes at a time
FILES_AT_ONCE = 64  # fetched together, where the store can: one after the other, waiting is most of the time
GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class TextFile:
    """One file of a source; `fs` is its fsspec file system, `path` its path there, `size` in bytes."""

    fs: Any
    path: str
    size: int
    tag: str | None

    @property
    def uri(self) -> str:
        return str(self.fs.unstrip_protocol(self.path))

    def content_hash(self) -> str:
        """The store's own tag of the content if it has one (object stores do), else the hash of the bytes."""
        if self.tag is not None:
            return self.tag
        digest = hashlib.blake2b(digest_size=16)
        with refusing("read", self.uri), self.fs.open(self.path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class TextPiece:
    """A file, or a run of its rows: of .jsonl the lines that begin in bytes [start, stop), of .parquet row groups."""

    file: TextFile
    start: int
    stop: int
    size: int


def text_files(source: str) -> list[TextFile]:
    """The files of a URI, sorted by path: the file itself, or those of a folder or glob that are not hidden.

    Raises InputError when there are none, or when one named by itself or by a glob has an extension not in
    EXTENSIONS; other files of a folder are no part of the source.
    """
    fs, root = filesystem(source)
    with refusing("read", source):
        infos = _infos(fs, root)
    if infos is None:
        raise InputError(
            f"source {source!r} does not exist: allowed are idioms, stdlib, installed, "
            "or the URI of a file, folder or glob"
        )
    files = [_text_file(fs, info) for info in infos]
    if not files:
        raise InputError(f"source {source!r} has no {', '.join(EXTENSIONS)} file")
    for file in files:
        if _extension(file.path) not in EXTENSIONS:
            raise InputError(f"source {file.uri!r} has an unknown extension: allowed are {', '.join(EXTENSIONS)}")
    return sorted(files, key=lambda file: file.path)


def pieces(file: TextFile, piece_bytes: int) -> list[TextPiece]:
    """A file in pieces of about `piece_bytes`, as far as it has rows to cut between."""
    count = math.ceil(file.size / piece_bytes)
    units = file.size
    if count > 1 and _extension(file.path) == ".parquet":
        with refusing("read", file.uri), _opened(file) as opened:
            units = pyarrow.parquet.ParquetFile(opened).num_row_groups
        count = min(count, units)
    elif _extension(file.path) != ".jsonl":
        count = 1
    if count <= 1:
        return [TextPiece(file, 0, -1, file.size)]
    cuts = [units * index // count for index in range(count + 1)]
    return [
        TextPiece(file, start, stop, file.size * stop // units - file.size * start // units)
        for start, stop in pairwise(cuts)
    ]


def read_texts(run: Sequence[TextPiece], text_field: str) -> Iterator[str]:
    """The documents of files or pieces in the given order, streamed; InputError names the file (and row)."""
    readers = {".jsonl": _json_rows, ".parquet": _parquet_rows}
    for extension, together in groupby(run, key=lambda piece: _extension(piece.file.path)):
        if extension not in readers:
            yield from _whole_files([piece.file for piece in together])
            continue
        for piece in together:
            with refusing("read", piece.file.uri):
                yield from readers[extension](piece, text_field)


def _infos(fs: Any, root: str) -> list[dict[str, Any]] | None:
    """What the store knows about each file of a source; None if there is no such source."""
    try:
        found = fs.info(root)
    except FileNotFoundError:
        fixed = GLOB.split(root)[0]
        if fixed == root:
            return None
        matches = fs.glob(root, detail=True).values()
        return [info for info in matches if info["type"] == "file" and not _is_hidden(info["name"], fixed)]
    if found["type"] == "file":
        return [found]
    below = [info for info in fs.find(root, detail=True).values() if not _is_hidden(info["name"], root)]
    return [info for info in below if _extension(info["name"]) in EXTENSIONS]


def _text_file(fs: Any, info: dict[str, Any]) -> TextFile:
    tag = next((str(info[field]) for field in TAG_FIELDS if info.get(field)), None)
    return TextFile(fs, info["name"], int(info.get("size") or 0), tag)


def _extension(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _is_hidden(path: str, root: str) -> bool:
    return any(part.startswith(".") for part in path.removeprefix(root).split("/"))


def _whole_files(files: Sequence[TextFile]) -> Iterator[str]:
    for group in _fetched_together(files):
        found = contents(group[0].fs, [file.path for file in group])
        for file in group:
            with refusing("read", file.uri):
                raw = found.get(file.path, FileNotFoundError())
                if isinstance(raw, Exception):
                    raise raw
                yield raw.decode("utf-8")


def _fetched_together(files: Sequence[TextFile]) -> Iterator[list[TextFile]]:
    """Neighbours of at most READ_AHEAD bytes together; a larger file is alone."""
    group: list[TextFile] = []
    size = 0
    for file in files:
        if group and (len(group) == FILES_AT_ONCE or size + file.size > READ_AHEAD):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.size
    if group:
        yield group


def _opened(file: TextFile) -> Any:
    return file.fs.open(file.path, "rb", block_size=READ_AHEAD)


def _json_rows(piece: TextPiece, text_field: str) -> Iterator[str]:
    file = piece.file
    # fsspec's own line reader fetches and copies a whole block per line.
    with _opened(file) as opened, io.BufferedReader(opened, 2**18) as lines:
        place = 0
        if piece.start:
            lines.seek(piece.start - 1)
            place = piece.start - 1 + len(lines.readline())  # the rest of a line that begins in the piece before
        for number, line in enumerate(lines, start=1):
            if 0 <= piece.stop <= place:
                break
            where = f"{file.uri} byte {place}" if piece.start else f"{file.uri} line {number}"
            place += len(line)
            if line.strip():
                yield _json_text(line, text_field, where)


def _json_text(line: bytes, text_field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    return _checked(row.get(text_field) if isinstance(row, dict) else None, text_field, where)


def _parquet_rows(piece: TextPiece, text_field: str) -> Iterator[str]:
    file = piece.file
    with _opened(file) as opened:
        table = pyarrow.parquet.ParquetFile(opened)
        columns = table.schema_arrow.names
        if text_field not in columns:
            raise InputError(f"{file.uri}: no field {text_field!r}: its fields are {', '.join(columns)}")
        groups = range(table.num_row_groups)[piece.start : None if piece.stop < 0 else piece.stop]
        row = sum(table.metadata.row_group(group).num_rows for group in range(piece.start))
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=list(groups), columns=[text_field]):
            for text in batch.column(0).to_pylist():
                row += 1
                yield _checked(text, text_field, f"{file.uri} row {row}")


def _checked(text: object, text_field: str, where: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{where}: field {text_field!r} is missing or not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: field {text_field!r} is not valid Unicode: {error.reason}") from error
    return text
