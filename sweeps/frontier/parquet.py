"""Reading one of the frontier's tables: files of single trials beside compacted ones, rows of older versions.

Every file *claims* trials, each with an attempt: a trial's own file claims that one trial, a compacted file all those
in the record in its metadata (an empty table claims too: a trial without circuits). The rows of a trial come from the
file with the highest claim: the highest attempt, then the trial's own file, then the newest compacted one. So it does
not matter whether a compaction was killed half-way, or what was written while it ran.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from circuit.proofs.verdicts import HELDOUT_LIMIT
from circuit.search.config import SEARCH_VERSION
from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.frontier.columns import converted, partition_values, without_nan
from sweeps.frontier.rows import SCHEMA_VERSION, TABLES, table_uri

ROW_ENDING = ".parquet"
COMPACTED = "compacted-"
"""How names of compacted files begin; trials' keys begin otherwise."""
RECORD = b"contains"
"""Metadata of a compacted file: JSON object from trials to their attempts."""
NEEDED = {
    "trials": ("trial", "kind", "status", "val_loss"),
    "circuits": ("trial", "task", "target_loss", "status", "edges"),
    "curves": ("trial", "step"),
}
"""Columns without which rows say nothing."""
ONE_ROW_EACH = {
    "trials": ("trial",),
    "circuits": ("trial", "task", "target_loss", "method"),
    "curves": ("trial", "step"),
}
"""Columns of which no two rows of a file have the same values."""
_log = logging.getLogger(__name__)

TRIES = 20
"""Times a folder is listed again because a file listed was gone when it was to be read (it was compacted)."""


@dataclass(frozen=True)
class Source:
    """One file of a table, read. Not opened for longer than needed: an open one takes 180 kB, whatever is in it."""

    root: str
    name: str
    content: bytes = field(repr=False)

    @property
    def is_compacted(self) -> bool:
        return self.name.startswith(COMPACTED) and not self.is_nested

    @property
    def is_nested(self) -> bool:
        """Whether it lies in a folder of its own, as only other programs' files do."""
        return "/" in self.name

    @cached_property
    def claims(self) -> dict[str, int]:
        """Trials this file speaks for, each with its attempt."""
        if self.is_compacted:
            metadata = self.open().schema_arrow.metadata or {}
            if RECORD not in metadata:
                raise InputError(f"{self.root}: {self.name} is not of `sweeps compact`: name it differently")
            record: dict[str, int] = json.loads(metadata[RECORD])
            return record
        stem = self.name.removesuffix(ROW_ENDING)
        if self.is_nested:  # its name says nothing: those of others may be the same
            return {stem: 0}
        trial, plus, attempt = stem.rpartition("+")
        return {trial: int(attempt)} if plus and attempt.isdigit() else {stem: 0}

    def open(self) -> Any:
        """The `pyarrow.parquet.ParquetFile`; InputError for one that is damaged or newer than this version."""
        try:
            file = pq.ParquetFile(pa.BufferReader(self.content))
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.root}: rows that cannot be read ({self.name}: {reason})") from None
        version = int((file.schema_arrow.metadata or {}).get(b"schema_version", 0))
        if version > SCHEMA_VERSION:
            raise InputError(
                f"{self.root}: rows of schema {version} in {self.name}; this version reads up to {SCHEMA_VERSION}"
            )
        return file

    def rows(self, table: str, columns: Sequence[str]) -> Any:
        """The file's rows in the table's present schema; columns it lacks are null."""
        schema, file = TABLES[table], self.open()
        content = self._content(file, table, columns)
        foreign = b"schema_version" not in (file.schema_arrow.metadata or {})
        arrays = [self._column(content, table, name, foreign) for name in columns]
        if foreign:
            check_once(f"{self.root}: {self.name} in", table, dict(zip(columns, arrays, strict=True)))
        return pa.table(arrays, schema=pa.schema([schema.field(name) for name in columns], metadata=schema.metadata))

    def _content(self, file: Any, table: str, columns: Sequence[str]) -> Any:
        """What the file and the names of its folders say of these columns; all `NEEDED` ones are there."""
        there = [name for name in columns if name in file.schema_arrow.names]
        said = partition_values(self.name.rpartition("/")[0])
        for name in NEEDED[table]:
            if name not in file.schema_arrow.names and name not in said:
                raise InputError(f"{self.root}: {self.name} in frontier/{table} has no column {name!r}")
        content = file.read(columns=there, use_threads=self.is_compacted)
        rows = file.metadata.num_rows  # which a table without columns does not know
        for name in columns:
            if name in said and name not in there:
                content = content.append_column(name, pa.repeat(pa.scalar(said[name], pa.string()), rows))
        return content if content.column_names else pa.table({"": pa.nulls(rows)})

    def _column(self, content: Any, table: str, name: str, foreign: bool) -> Any:
        """A column in our type; InputError where a needed one cannot be. Another is empty then, and that is said."""
        kind = TABLES[table].field(name).type
        if name not in content.column_names:
            return pa.nulls(len(content), kind)
        column = without_nan(content[name]) if foreign else content[name]
        try:
            return converted(column, kind)
        except pa.ArrowException as error:
            found = f"{self.name} in frontier/{table}: column {name!r} of {column.type}; allowed: {kind}"
            reason = " ".join(str(error).split())
            if name in NEEDED[table]:
                raise InputError(f"{self.root}: {found} ({reason})") from None
            _log.warning("%s: %s: left empty (%s)", self.root, found, reason)
            return pa.nulls(len(content), kind)


def check_once(where: str, table: str, found: Mapping[str, Any]) -> None:
    """InputError for rows without a trial, and for two rows of what there is one of."""
    if "trial" in found and (without := found["trial"].null_count) > 0:
        raise InputError(f"{where} frontier/{table}: {without} rows have no trial")
    keys = list(ONE_ROW_EACH[table])
    if set(keys) <= found.keys():
        counts = pa.table({name: found[name] for name in keys}).group_by(keys).aggregate([([], "count_all")])
        for row in counts.filter(pc.greater(counts["count_all"], 1)).sort_by("trial").slice(0, 1).to_pylist():
            said = " ".join(f"{name} {row[name]!r}" for name in keys if row[name] is not None)
            raise InputError(f"{where} frontier/{table}: {row['count_all']} rows of {said}; allowed: one")


def read_table(root: str, table: str, columns: Sequence[str] | None = None) -> Any:
    """One of the `TABLES` of the study at `root` as a `pyarrow.Table`; InputError for rows that cannot be read."""
    names = TABLES[table].names if columns is None else list(columns)
    needed = [*names, *(name for name in ("trial", *_FILLED_FROM.get(table, ())) if name not in names)]
    try:
        rows = together(rows for _, rows in kept_rows(read_sources(root, table), table, needed))
        if rows is None:
            return TABLES[table].empty_table().select(names)
        if table == "trials":  # of several files
            check_once(f"{root}:", table, {"trial": rows["trial"]})
        return _filled(table, rows).select(names)
    except (pa.ArrowException, json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{root}: rows that cannot be read ({' '.join(str(error).split())})") from None


def read_sources(root: str, table: str) -> list[Source]:
    """Every file of a table as of one moment, however busy others are with it."""
    uri = table_uri(root, table)
    for _ in range(TRIES):
        names = row_files(root, table)
        found = {name: content for name, content in storage.read_many(uri, names) if content is not None}
        if len(found) == len(names):
            return [Source(root, name, content) for name, content in found.items()]
    raise InputError(f"{uri}: its files keep vanishing while they are read")


def row_files(root: str, table: str) -> list[str]:
    """Paths below a table's folder of the files with its rows; InputError where there are only files of other kinds."""
    found = list(storage.versions(table_uri(root, table), True))
    names = [name for name in found if name.endswith(ROW_ENDING)]
    if found and not names:
        raise InputError(
            f"{root}: frontier/{table} has no {ROW_ENDING} file, but {found[0]}; allowed: {ROW_ENDING} files"
        )
    return names


def together(tables: Iterable[Any], *, unify: bool = False) -> Any:
    """Many small tables as one, None for none. Copied a few hundred at a time: one of one row takes 70 kB.

    `unify`: tables may lack columns of others, which are null there, and have others' in narrower types.
    """
    how = {"promote_options": "permissive"} if unify else {}
    done: list[Any] = []
    waiting: list[Any] = []
    for table in tables:
        waiting.append(table)
        if len(waiting) == 500:
            done.append(pa.concat_tables(waiting, **how).combine_chunks())
            waiting = []
    return pa.concat_tables(done + waiting, **how) if done or waiting else None


def kept_rows(
    sources: Sequence[Source], table: str, columns: Sequence[str] | Callable[[Source], Any]
) -> Iterator[tuple[Source, Any]]:
    """Of every source that has any, the rows of trials for which no other source has the higher claim.

    `columns` of the table, or what gives a source's rows.
    """
    best = winners(sources)
    for source in sources:
        lost = [trial for trial in source.claims if best[trial] is not source]
        if lost and len(lost) == len(source.claims):
            continue
        rows = columns(source) if callable(columns) else source.rows(table, columns)
        yield source, rows.filter(pc.invert(pc.is_in(rows["trial"], pa.array(lost)))) if lost else rows


def winners(sources: Sequence[Source]) -> Mapping[str, Source]:
    """The source whose rows of a trial hold, for every trial any source speaks for."""
    best: dict[str, tuple[tuple[int, bool, str], Source]] = {}
    for source in sources:
        for trial, attempt in source.claims.items():
            rank = (attempt, not source.is_compacted, source.name)
            if trial not in best or rank > best[trial][0]:
                best[trial] = (rank, source)
    return {trial: source for trial, (_, source) in best.items()}


_VERSIONS = ("schema_version", "search_version")
_FILLED_FROM = {
    "trials": ("attempt", "retried", "eligible", "status", "circuit_edges", *_VERSIONS),
    "circuits": ("method", "counted", "status", "edges", "heldout_loss", "target_loss", *_VERSIONS),
}
"""Columns that `_filled` needs."""


def _filled(table: str, rows: Any) -> Any:
    """What older versions and other programs did not write but imply.

    Schema 1 had no attempt, a retried trial was at its second. A trial that is not said to be eligible is so where it
    is ok and has a circuit size; a circuit of no method is pruned by nodes, and counted by today's rule. Rows of no
    schema are of today's, and of today's search; rows of a schema without that column, of search 0: nobody knows.
    """
    if table == "curves":
        return rows
    own = pc.if_else(pc.is_valid(rows["schema_version"]), 0, SEARCH_VERSION).cast(pa.int64())
    rows = _coalesced(rows, "search_version", own)
    if table == "circuits":
        return _coalesced(_coalesced(rows, "method", pa.scalar("node")), "counted", _counted(rows))
    rows = _coalesced(rows, "schema_version", pa.scalar(SCHEMA_VERSION, pa.int64()))
    retried = pc.if_else(pc.fill_null(rows["retried"], False), 1, 0).cast(pa.int64())
    edges = pc.fill_null(rows["circuit_edges"], math.inf)
    is_size = pc.and_(pc.is_finite(edges), pc.greater_equal(edges, 0))
    sized = pc.and_(pc.fill_null(pc.equal(rows["status"], "ok"), False), is_size)
    return _coalesced(_coalesced(rows, "attempt", retried), "eligible", sized)


def _counted(rows: Any) -> Any:
    """`sweeps.frontier.counting.counted`, of all rows at once."""
    limit = pc.multiply(rows["target_loss"], HELDOUT_LIMIT)
    sufficient = pc.fill_null(pc.less_equal(rows["heldout_loss"], limit), True)
    has_edges = pc.fill_null(pc.greater(rows["edges"], 0), False)
    return pc.and_(pc.and_(pc.fill_null(pc.equal(rows["status"], "ok"), False), has_edges), sufficient)


def _coalesced(rows: Any, column: str, implied: Any) -> Any:
    place = rows.schema.get_field_index(column)
    return rows.set_column(place, rows.schema.field(column), pc.coalesce(rows[column], implied))
