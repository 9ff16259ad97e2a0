"""Documents out of files: cut into pieces that can be read independently, and streamed.

Of a file a few megabytes are in memory at a time, of a Parquet file a few pages of the text's column. What is no text
is counted and passed over (`Tally`); a file that is damaged, or has no such column, is an InputError.
"""

import bz2
import gzip
import io
import lzma
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from sparse_model.data.readers.long_texts import LONGEST, cut_bytes
from sparse_model.data.readers.tally import Tally
from sparse_model.data.readers.uri_files import TextFile, text_files as text_files
from sparse_model.errors import InputError
from sparse_model.storage.files import contents, refusing
from sparse_model.storage.text import decoded, parse_json

READ_AHEAD = 2 * 2**20  # of a file in an object store, which would else fetch tens of megabytes at a time
FILES_AT_ONCE = 64  # fetched together, where the store can: one after the other, waiting is most of the time
READ_BLOCK = 2**18
WHOLE = 10 * LONGEST  # bytes of a file of text that is never cut between lines for reading: most are shorter
MOST_PIECES = 4096  # of a file
MOST_PASSES = 8  # over a group of rows that is read as a whole in the end
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class TextPiece:
    """A file, or some of it. Of lines those that begin in bytes [start, stop), of .parquet row groups [start, stop).

    Of these, every `step`-th row from `first` on: rows of a large group are spread over its pieces.
    """

    file: TextFile
    start: int
    stop: int
    size: int
    first: int = 0
    step: int = 1


def pieces(file: TextFile, piece_bytes: int, *, sampled: bool = False) -> list[TextPiece]:
    """A file in pieces of about `piece_bytes` of text, as far as it has rows or lines to cut between.

    `sampled`: not all of the pieces will be read. Then the pieces of a very large file need not cover it.
    """
    whole = [TextPiece(file, 0, -1, file.size)]
    if file.compression:  # which can be read from its beginning only
        return whole
    if file.extension == ".parquet":
        return _row_pieces(file, piece_bytes, sampled) if file.size > piece_bytes else whole
    size = piece_bytes if file.extension == ".jsonl" else max(piece_bytes, WHOLE)
    count = min(math.ceil(file.size / size), MOST_PIECES)
    if count <= 1:
        return whole
    cuts = [file.size * index // count for index in range(count + 1)]
    stops = [min(stop, start + size) if sampled else stop for start, stop in pairwise(cuts)]
    return [TextPiece(file, start, stop, stop - start) for start, stop in zip(cuts, stops, strict=False)]


def _row_pieces(file: TextFile, piece_bytes: int, sampled: bool) -> list[TextPiece]:
    """Runs of row groups; of a group that is larger than a piece, rows from all over it."""
    with refusing("read", file.uri), _opened(file) as opened:
        metadata = pyarrow.parquet.ParquetFile(opened).metadata
        groups = metadata.num_row_groups
        rows = [metadata.row_group(group).num_rows for group in range(groups)]
    runs = min(math.ceil(file.size / piece_bytes), groups, MOST_PIECES)
    cuts = [groups * index // runs for index in range(runs + 1)] if runs else []
    found = []
    for start, stop in pairwise(cuts):
        size = file.size * stop // groups - file.size * start // groups
        most = min(sum(rows[start:stop]), MOST_PIECES if sampled else MOST_PASSES)
        step = max(1, min(math.ceil(size / piece_bytes), most))
        found += [
            TextPiece(file, start, stop, size * (first + 1) // step - size * first // step, first, step)
            for first in range(step)
        ]
    return found or [TextPiece(file, 0, -1, file.size)]


def read_texts(run: Sequence[TextPiece], text_field: str, tally: Tally | None = None) -> Iterator[str]:
    """The documents of files or pieces in the given order, streamed; of long files of text, pieces of bounded size.

    InputError names a file that cannot be read, or has no `text_field`.
    """
    counted = Tally() if tally is None else tally
    readers = {".jsonl": _json_rows, ".parquet": _parquet_rows}
    for (extension, is_small), together in groupby(run, key=_kind):
        if extension not in readers and is_small:
            yield from _whole_files([piece.file for piece in together], counted)
            continue
        for piece in together:
            with refusing("read", piece.file.uri):
                if extension in readers:
                    yield from readers[extension](piece, text_field, counted)
                else:
                    yield from _long_text(piece, counted)


def _kind(piece: TextPiece) -> tuple[str, bool]:
    """What decides how a piece is read: the extension, and whether it is a small file as it is."""
    file = piece.file
    return file.extension, not file.compression and piece.stop < 0 and file.stored <= WHOLE


def _whole_files(files: Sequence[TextFile], tally: Tally) -> Iterator[str]:
    for group in _fetched_together(files):
        found = contents(group[0].fs, [file.path for file in group])
        for file in group:
            with refusing("read", file.uri):
                raw = found.get(file.path, FileNotFoundError())
                if isinstance(raw, Exception):
                    raise raw
            yield from _text(raw, file.uri, tally)


def _fetched_together(files: Sequence[TextFile]) -> Iterator[list[TextFile]]:
    """Neighbours of at most READ_AHEAD bytes together; a larger file is alone."""
    group: list[TextFile] = []
    size = 0
    for file in files:
        if group and (len(group) == FILES_AT_ONCE or size + file.stored > READ_AHEAD):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.stored
    if group:
        yield group


def _long_text(piece: TextPiece, tally: Tally) -> Iterator[str]:
    """The lines of a piece, in documents of bounded size."""
    with _opened_text(piece.file) as file:
        for raw in cut_bytes(_blocks(file, piece)):
            yield from _text(raw, piece.file.uri, tally)


def _blocks(file: IO[bytes], piece: TextPiece) -> Iterator[bytes]:
    """The bytes of the lines that begin in a piece, in blocks."""
    place = _first_line(file, piece)
    while piece.stop < 0 and (block := file.read(READ_BLOCK)):
        yield block
    last = b"\n"
    while place < piece.stop and (last := file.read(min(READ_BLOCK, piece.stop - place))):
        place += len(last)
        yield last
    while (
        last and not last.endswith(b"\n") and (last := file.readline(READ_BLOCK))
    ):  # the line that goes on behind `stop`
        yield last


def _first_line(file: IO[bytes], piece: TextPiece) -> int:
    """Go to the first line that begins in a piece, over the rest of one that begins before; its place."""
    if not piece.start:
        return 0
    place = file.seek(piece.start - 1)
    while line := file.readline(READ_BLOCK):
        place += len(line)
        if line.endswith(b"\n") or 0 <= piece.stop <= place:
            break
    return place


def _text(raw: bytes, where: str, tally: Tally) -> Iterator[str]:
    try:
        text = decoded(raw, where)
    except InputError as error:
        tally.refuse(str(error))
        return
    tally.read += 1
    yield text


def _json_rows(piece: TextPiece, text_field: str, tally: Tally) -> Iterator[str]:
    with _opened_text(piece.file) as file:
        place = _first_line(file, piece)
        for number, line in enumerate(file, start=1):
            if 0 <= piece.stop <= place:
                break
            where = f"{piece.file.uri} byte {place}" if piece.start else f"{piece.file.uri} line {number}"
            place += len(line)
            if line.strip():
                yield from _json_text(line, text_field, where, tally)


def _json_text(line: bytes, text_field: str, where: str, tally: Tally) -> Iterator[str]:
    try:
        text = decoded(line, "")
    except InputError:
        tally.refuse(f"{where}: not UTF-8")
        return
    try:
        row = parse_json(text, "not JSON")
    except InputError as error:
        tally.refuse(f"{where}: {error}")
        return
    fields = f"; its fields are {', '.join(row)}" if isinstance(row, dict) and text_field not in row else ""
    yield from _checked(row.get(text_field) if isinstance(row, dict) else None, text_field, where, tally, fields)


def _parquet_rows(piece: TextPiece, text_field: str, tally: Tally) -> Iterator[str]:
    file = piece.file
    with _opened(file) as opened:
        # of a column of a row group, which may be all of the file, only a block at a time
        table = pyarrow.parquet.ParquetFile(opened, buffer_size=READ_BLOCK, pre_buffer=False)
        _check_column(table, text_field, file.uri)
        groups = list(range(table.num_row_groups)[piece.start : None if piece.stop < 0 else piece.stop])
        before = sum(table.metadata.row_group(group).num_rows for group in range(piece.start))
        row = 0
        for batch in table.iter_batches(_batch_rows(table, groups, text_field), groups, [text_field]):
            places = np.arange(row, row + len(batch))
            places = places[places % piece.step == piece.first]
            values = batch.column(0).take(pa.array(places - row)) if piece.step > 1 else batch.column(0)
            row += len(batch)
            for place, text in zip(places.tolist(), values.to_pylist(), strict=True):
                yield from _checked(text, text_field, f"{file.uri} row {before + place + 1}", tally)


def _check_column(table: Any, text_field: str, uri: str) -> None:
    schema = table.schema_arrow
    if text_field not in schema.names:
        raise InputError(f"{uri}: no field {text_field!r}: its fields are {', '.join(schema.names)}")
    kind = schema.field(text_field).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
    if not any(getattr(pa.types, f"is_{test}")(kind) for test in tests):
        raise InputError(f"{uri}: field {text_field!r} is of type {kind}; allowed: text")


def _batch_rows(table: Any, groups: Sequence[int], text_field: str) -> int:
    """Rows that are about READ_AHEAD bytes of text together, at most ROWS_AT_ONCE."""
    metadata = table.metadata
    names = [metadata.schema.column(i).path for i in range(len(metadata.schema))]
    column = names.index(text_field)
    size = sum(metadata.row_group(group).column(column).total_uncompressed_size for group in groups)
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    return int(max(1, min(ROWS_AT_ONCE, rows * READ_AHEAD // max(1, size))))


def _checked(value: object, text_field: str, where: str, tally: Tally, fields: str = "") -> Iterator[str]:
    """The value, where it is a text."""
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else value
        if isinstance(text, str):
            text.encode("utf-8")
    except UnicodeError as error:
        reason = getattr(error, "reason", "")
        tally.refuse(f"{where}: field {text_field!r} is not valid Unicode: {reason}")
        return
    if not isinstance(text, str):
        tally.refuse(f"{where}: field {text_field!r} is missing or not a string{fields}")
        return
    tally.read += 1
    yield text


def _opened(file: TextFile) -> Any:
    return file.fs.open(file.path, "rb", block_size=READ_AHEAD)


@contextmanager
def _opened_text(file: TextFile) -> Iterator[IO[bytes]]:
    """The file as it is before compression."""
    # fsspec's own line reader fetches and copies a whole block per line
    with (
        _opened(file) as opened,
        OPENERS[file.compression](opened) as plain,
        io.BufferedReader(plain, READ_BLOCK) as lines,
    ):
        yield lines


OPENERS: dict[str, Callable[[Any], Any]] = {
    "": lambda opened: opened,
    ".gz": lambda opened: gzip.GzipFile(fileobj=opened),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda opened: pa.CompressedInputStream(pa.PythonFile(opened, mode="r"), "zstd"),
}
