"""Many small files of a table into one, beside running writers and readers.

The compacted file is written whole before anything is deleted, and only files whose rows are in it are deleted. A name
is never given new content (`rows.py`), so what is deleted is what was read: a trial run again meanwhile has a file
of another name and a higher attempt. Columns that this version does not know are kept. Killed anywhere, some rows lie
twice, and readers take them once (`parquet.py`).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sparse_model import storage
from sweeps.frontier.columns import without_nan
from sweeps.frontier.parquet import COMPACTED, RECORD, Source, kept_rows, read_sources, together, winners
from sweeps.frontier.rows import TABLES, parquet_bytes, table_uri


@dataclass(frozen=True)
class Compacted:
    """What a compaction did to one table."""

    table: str
    files: int
    rows: int


def compact_rows(root: str) -> list[Compacted]:
    """Compact the tables of the study at `root`; a table of a single file stays as it is. InputError from storage."""
    return [done for table in TABLES if (done := _compact_table(root, table)) is not None]


def _compact_table(root: str, table: str) -> Compacted | None:
    whole = {source: content for source in read_sources(root, table) if (content := _whole(source, table)) is not None}
    absorbed = list(whole)
    if len(absorbed) < 2:
        return None
    schema = TABLES[table]
    content = _joined([rows for _, rows in kept_rows(absorbed, table, whole.__getitem__)]).sort_by("trial")
    record = {trial: source.claims[trial] for trial, source in sorted(winners(absorbed).items())}
    content = content.replace_schema_metadata({**schema.metadata, RECORD: json.dumps(record).encode()})
    name = f"{COMPACTED}{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
    storage.write_bytes_atomic(storage.join(table_uri(root, table), name), parquet_bytes(content))
    storage.remove_many(table_uri(root, table), [source.name for source in absorbed])
    return Compacted(table, len(absorbed), content.num_rows)


def _whole(source: Source, table: str) -> Any:
    """All that is in a file: our columns in our types, then those we do not know, as they are. None of a file that is
    to be left alone: another program's, or one of whose values some would be lost."""
    if not _is_ours(source):
        return None
    schema, content = TABLES[table], source.open().read()
    rows = source.rows(table, schema.names)
    for name in content.column_names:
        if name not in schema.names:
            rows = rows.append_column(content.schema.field(name), content[name])
        elif rows[name].null_count > without_nan(content[name]).null_count:
            return None
    return rows


def _joined(tables: Sequence[Any]) -> Any:
    """Tables with columns of their own as one; a column that has types that do not go together is text."""
    kinds: dict[str, set[Any]] = {}
    for table in tables:
        for field in table.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    mixed = {name for name, found in kinds.items() if len(found) > 1 and not _go_together(found)}
    return together((_as_text(table, mixed) for table in tables), unify=True)


def _go_together(kinds: Iterable[Any]) -> bool:
    try:
        pa.unify_schemas([pa.schema([("", kind)]) for kind in kinds], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _as_text(table: Any, names: Iterable[str]) -> Any:
    for name in names:
        if name in table.column_names:
            place = table.schema.get_field_index(name)
            texts = [None if value is None else str(value) for value in table[name].to_pylist()]
            table = table.set_column(place, name, pa.array(texts, pa.string()))
    return table


def _is_ours(source: Source) -> bool:
    """Whether all rows of a file are of trials it speaks for: other programs' files of many trials are left alone."""
    if source.is_nested:
        return False
    if source.is_compacted:
        return True
    file = source.open()
    trials: Any = file.read(columns=["trial"])["trial"] if "trial" in file.schema_arrow.names else None
    return trials is not None and set(pc.unique(trials).to_pylist()) <= source.claims.keys()
