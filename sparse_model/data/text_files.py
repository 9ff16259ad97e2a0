"""Documents in files named by a URI: .py and .txt hold one each, .jsonl and .parquet one per row."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow.parquet

from sparse_model.errors import InputError
from sparse_model.storage import filesystem, refusing

EXTENSIONS = (".py", ".txt", ".jsonl", ".parquet")
# What drivers call a tag of the content. Times are none: two writes can fall into one tick of the clock.
TAG_FIELDS = ("ETag", "etag", "blob_id", "md5Hash")
ROWS_AT_ONCE = 1024
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


def read_texts(files: Sequence[TextFile], text_field: str) -> Iterator[str]:
    """The documents of the files in the given order, streamed; InputError names the file (and row)."""
    readers = {".jsonl": _json_rows, ".parquet": _parquet_rows}
    for file in files:
        extension = _extension(file.path)
        with refusing("read", file.uri):
            if extension in readers:
                yield from readers[extension](file, text_field)
            else:
                yield file.fs.cat_file(file.path).decode("utf-8")


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


def _json_rows(file: TextFile, text_field: str) -> Iterator[str]:
    with file.fs.open(file.path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{file.uri} line {number}: not JSON: {error}") from error
            text = row.get(text_field) if isinstance(row, dict) else None
            yield _checked(text, text_field, f"{file.uri} line {number}")


def _parquet_rows(file: TextFile, text_field: str) -> Iterator[str]:
    with file.fs.open(file.path, "rb") as opened:
        table = pyarrow.parquet.ParquetFile(opened)
        columns = table.schema_arrow.names
        if text_field not in columns:
            raise InputError(f"{file.uri}: no field {text_field!r}: its fields are {', '.join(columns)}")
        row = 0
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=[text_field]):
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
