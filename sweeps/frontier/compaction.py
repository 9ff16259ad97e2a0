"""Many small files of a table into one, beside running writers and readers.

The compacted file is written whole before anything is deleted, and only files whose rows are in it are deleted. A name
is never given new content (`rows.py`), so what is deleted is what was read: a trial run again meanwhile has a file
of another name and a higher attempt. (A process that died between writing its row and reporting it writes the same
trial's row again: either may stay.) Killed anywhere, some rows lie twice, and readers take them once (`parquet.py`).
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from sparse_model import storage
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
    absorbed = [source for source in read_sources(root, table) if _is_ours(source)]
    if len(absorbed) < 2:
        return None
    schema = TABLES[table]
    content = together(rows for _, rows in kept_rows(absorbed, table, schema.names)).sort_by("trial")
    record = {trial: source.claims[trial] for trial, source in sorted(winners(absorbed).items())}
    content = content.replace_schema_metadata({**schema.metadata, RECORD: json.dumps(record).encode()})
    name = f"{COMPACTED}{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
    storage.write_bytes_atomic(storage.join(table_uri(root, table), name), parquet_bytes(content))
    storage.remove_many(table_uri(root, table), [source.name for source in absorbed])
    return Compacted(table, len(absorbed), content.num_rows)


def _is_ours(source: Source) -> bool:
    """Whether all rows of a file are of trials it speaks for: other programs' files of many trials are left alone."""
    if source.is_nested:
        return False
    if source.is_compacted:
        return True
    file = source.open()
    trials: Any = file.read(columns=["trial"])["trial"] if "trial" in file.schema_arrow.names else None
    return trials is not None and set(pc.unique(trials).to_pylist()) <= source.claims.keys()
