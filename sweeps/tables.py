"""Reading one of the frontier's tables: files of single trials beside compacted ones, rows of older versions.

Every file *claims* trials, each with an attempt: a trial's own file claims that one trial, a compacted file all those
in the record in its metadata (an empty table claims too: a trial without circuits). The rows of a trial come from the
file with the highest claim: the highest attempt, then the trial's own file, then the newest compacted one. So it does
not matter whether a compaction was killed half-way, or what was written while it ran.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.rows import SCHEMA_VERSION, TABLES, table_uri

COMPACTED = "compacted-"
"""How names of compacted files begin; trials' keys begin otherwise."""
RECORD = b"contains"
"""Metadata of a compacted file: JSON object from trials to their attempts."""
TRIES = 20
"""Times a folder is listed again because a file listed was gone when it was to be read (it was compacted)."""


@dataclass(frozen=True)
class Source:
    """One file of a table, read."""

    name: str
    file: Any

    @property
    def is_compacted(self) -> bool:
        return self.name.startswith(COMPACTED)

    @cached_property
    def claims(self) -> dict[str, int]:
        """Trials this file speaks for, each with its attempt."""
        if self.is_compacted:
            record: dict[str, int] = json.loads(self.file.schema_arrow.metadata[RECORD])
            return record
        stem = self.name.removesuffix(".parquet")
        trial, plus, attempt = stem.rpartition("+")
        return {trial: int(attempt)} if plus and attempt.isdigit() else {stem: 0}

    def rows(self, table: str, columns: Sequence[str]) -> Any:
        """The file's rows in the table's present schema; columns it lacks are null."""
        schema = TABLES[table]
        there = [name for name in columns if name in self.file.schema_arrow.names]
        content = self.file.read(columns=there, use_threads=self.is_compacted)
        arrays = [
            content[name].cast(schema.field(name).type)
            if name in there
            else pa.nulls(len(content), schema.field(name).type)
            for name in columns
        ]
        return pa.table(arrays, schema=pa.schema([schema.field(name) for name in columns], metadata=schema.metadata))


def read_table(root: str, table: str, columns: Sequence[str] | None = None) -> Any:
    """One of the `TABLES` of the study at `root` as a `pyarrow.Table`; InputError for rows that cannot be read."""
    names = TABLES[table].names if columns is None else list(columns)
    needed = [*names, *(name for name in ("trial", *_FILLED_FROM.get(table, ())) if name not in names)]
    try:
        parts = [rows for _, rows in kept_rows(read_sources(root, table), table, needed)]
        if not parts:
            return TABLES[table].empty_table().select(names)
        return _filled(table, pa.concat_tables(parts)).select(names)
    except (pa.ArrowException, json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{root}: rows that cannot be read ({' '.join(str(error).split())})") from None


def read_sources(root: str, table: str) -> list[Source]:
    """Every file of a table as of one moment, however busy others are with it."""
    uri = table_uri(root, table)
    for _ in range(TRIES):
        names = [name for name in storage.versions(uri) if name.endswith(".parquet")]
        found = [_source(root, name, content) for name, content in storage.read_many(uri, names)]
        if None not in found:
            return [source for source in found if source is not None]
    raise InputError(f"{uri}: its files keep vanishing while they are read")


def kept_rows(sources: Sequence[Source], table: str, columns: Sequence[str]) -> list[tuple[Source, Any]]:
    """Of every source that has any, the rows of trials for which no other source has the higher claim."""
    best = winners(sources)
    kept = []
    for source in sources:
        lost = [trial for trial in source.claims if best[trial] is not source]
        if lost and len(lost) == len(source.claims):
            continue
        rows = source.rows(table, columns)
        kept.append((source, rows.filter(pc.invert(pc.is_in(rows["trial"], pa.array(lost)))) if lost else rows))
    return kept


def winners(sources: Sequence[Source]) -> Mapping[str, Source]:
    """The source whose rows of a trial hold, for every trial any source speaks for."""
    best: dict[str, tuple[tuple[int, bool, str], Source]] = {}
    for source in sources:
        for trial, attempt in source.claims.items():
            rank = (attempt, not source.is_compacted, source.name)
            if trial not in best or rank > best[trial][0]:
                best[trial] = (rank, source)
    return {trial: source for trial, (_, source) in best.items()}


def _source(root: str, name: str, content: bytes | None) -> Source | None:
    if content is None:
        return None
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except pa.ArrowException as error:
        raise InputError(f"{root}: rows that cannot be read ({name}: {' '.join(str(error).split())})") from None
    version = int((file.schema_arrow.metadata or {}).get(b"schema_version", 0))
    if version > SCHEMA_VERSION:
        raise InputError(f"{root}: rows of schema {version} in {name}; this version reads up to {SCHEMA_VERSION}")
    return Source(name, file)


_FILLED_FROM = {"trials": ("attempt", "retried", "eligible", "status", "circuit_edges"), "circuits": ("method",)}
"""Columns that `_filled` needs."""


def _filled(table: str, rows: Any) -> Any:
    """What older versions and other programs did not write but imply.

    Schema 1 had no attempt, a retried trial was at its second. A trial that is not said to be eligible is so where it
    is ok and has a circuit size; a circuit of no method is pruned by nodes.
    """
    if table == "circuits":
        return _coalesced(rows, "method", pa.scalar("node"))
    retried = pc.if_else(pc.fill_null(rows["retried"], False), 1, 0).cast(pa.int64())
    sized = pc.and_(pc.fill_null(pc.equal(rows["status"], "ok"), False), pc.is_valid(rows["circuit_edges"]))
    return _coalesced(_coalesced(rows, "attempt", retried), "eligible", sized)


def _coalesced(rows: Any, column: str, implied: Any) -> Any:
    place = rows.schema.get_field_index(column)
    return rows.set_column(place, rows.schema.field(column), pc.coalesce(rows[column], implied))
