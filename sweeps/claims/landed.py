"""Studies' rows as they lie in the repository: a folder with one of Parquet tables for each study.

`docs/data/<study>/` is laid out like a study's own folder, so that `sweeps frontier` reads it: study.yaml,
frontier/trials/rows.parquet, frontier/circuits/rows.parquet, and baselines.parquet where those were measured.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.frontier.parquet import read_table
from sweeps.frontier.queries import Frontier
from sweeps.frontier.rows import parquet_bytes
from sweeps.study.folder import study_at

LandedRow = Mapping[str, Any]
"""A row of trials or circuits."""

TABLES_LANDED = ("trials", "circuits")
"""Tables that are kept: learning curves are ten times as large, and no claim is of them."""

BASELINES_FILE = "baselines.parquet"
"""Beside a study's rows: what `sweeps baselines --rows` writes."""


class Landed:
    """The landed studies below a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @cached_property
    def studies(self) -> tuple[str, ...]:
        """Names of the studies that have rows."""
        below = Path(self.folder).glob("*/frontier/trials/*.parquet")
        return tuple(sorted({path.parents[2].name for path in below}))

    def has(self, *studies: str) -> bool:
        """Whether all of them have rows."""
        return set(studies) <= set(self.studies)

    def frontier(self, studies: Sequence[str]) -> Frontier:
        """The rows of several studies as one frontier; InputError where several searches found their circuits."""
        found = Frontier(*(storage.join(self.folder, study) for study in studies))
        rows = found.where("status = 'ok'").group_by(["search_version"]).aggregate([("study", "distinct")])
        if len(rows) > 1:
            raise InputError(
                f"{self.folder}: circuits of searches {sorted(rows['search_version'].to_pylist())} in "
                f"{', '.join(studies)}: their sizes do not mix; `sweeps run STUDY --prune-again` searches again"
            )
        return found

    def trials(self, studies: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of trials, `config` read."""
        rows: list[dict[str, Any]] = self.frontier(studies).trials().to_pylist()
        return [row | {"config": json.loads(row["config"] or "{}")} for row in rows]

    def circuits(self, studies: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of circuits, each with its trial's kind."""
        found = self.frontier(studies)
        kinds = {(row["study"], row["trial"]): row["kind"] for row in found.trials().to_pylist()}
        rows = found.circuits().to_pylist()
        return [row | {"kind": kinds[row["study"], row["trial"]]} for row in rows]

    def baselines(self, study: str) -> list[dict[str, Any]]:
        """Rows of circuits by way of choosing their parts: model, task, target_loss, way, edges; none of a study of
        which no such comparison was made."""
        path = Path(self.folder) / study / BASELINES_FILE
        return pq.read_table(io.BytesIO(path.read_bytes())).to_pylist() if path.exists() else []


def land_study(uri: str, folder: str) -> list[str]:
    """Copy the rows and the study file of the study at `uri` below a folder, a table into one file; the files written.

    Rows that landed before are replaced. The study file says nothing of where the results lay.
    """
    study = study_at(uri)
    Frontier(uri)  # refuses a folder without rows
    target = Path(folder) / study.name
    content: dict[Path, bytes] = {}
    for table in TABLES_LANDED:
        rows = read_table(uri, table)
        order = [
            (name, "ascending") for name in ("trial", "task", "method", "target_loss") if name in rows.column_names
        ]
        content[target / "frontier" / table / "rows.parquet"] = parquet_bytes(rows.sort_by(order))
    text = study.model_copy(update={"storage": "./results"}).to_yaml()
    content[target / "study.yaml"] = text.encode()
    for path, data in content.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return [str(path) for path in content]
