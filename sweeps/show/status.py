"""Where a study stands, from its folder alone: it may run anywhere, or nowhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow.compute as pc

from sparse_model import storage
from sweeps.frontier.parquet import read_table
from sweeps.frontier.rows import table_uri
from sweeps.search.objectives import FINAL
from sweeps.study.folder import study_at

RECENT = 20
"""Finished trials over which the rate is taken."""


@dataclass(frozen=True)
class Status:
    """A study's trials by state, how fast they finish, what they have cost.

    `begun` have checkpoints but no row: running, or interrupted. Rates are per hour and None where too few trials have
    finished to tell. `device_hours` are of training, in the study's `device`; `prune_hours` of pruning on the clock of
    each trial, beside which `prune_core_hours` and `prune_gpu_hours` are what its searches took, as the study asks now.
    """

    study: str
    trials: int
    by_status: dict[str, int]
    begun: int
    last_finished: datetime | None
    per_hour: float | None
    left: timedelta | None
    device: str
    device_hours: float
    prune_hours: float
    prune_core_hours: float
    prune_gpu_hours: float
    flops: float

    @property
    def done(self) -> int:
        return sum(self.by_status.values())


def study_status(uri: storage.PathOrURI) -> Status:
    """The status of the study whose folder is at `uri`; InputError where none is."""
    uri = storage.as_uri(uri)
    study = study_at(uri)
    rows = read_table(uri, "trials").to_pylist() if storage.exists(table_uri(uri, "trials")) else []
    rows = [row for row in rows if row["status"] in FINAL]
    finished = sorted(row["finished"] for row in rows if row["finished"] is not None)
    rate = _per_hour(finished)
    trials = study.search.trials * len(study.seeds)
    searched = _search_seconds(uri) / 3600
    names = storage.listdir(storage.join(uri, "ray", "train"))
    return Status(
        study=study.name,
        trials=trials,
        by_status=dict(Counter(row["status"] for row in rows)),
        begun=len(set(names) - {row["trial"] for row in rows}),
        last_finished=finished[-1] if finished else None,
        per_hour=rate,
        left=timedelta(hours=max(0, trials - len(rows)) / rate) if rate else None,
        device=study.resources.device_name,
        device_hours=sum((row["train_seconds"] or 0) * (row["devices"] or 1) for row in rows) / 3600,
        prune_hours=sum(row["prune_seconds"] or 0 for row in rows) / 3600,
        prune_core_hours=searched * study.resources.cpus_per_pruning_task,
        prune_gpu_hours=searched * study.resources.gpus_per_pruning_task,
        flops=sum(row["flops"] or 0 for row in rows),
    )


def _search_seconds(uri: str) -> float:
    """Of all circuits' searches together; those that share a search share its seconds."""
    if not storage.exists(table_uri(uri, "circuits")):
        return 0.0
    return float(pc.sum(read_table(uri, "circuits", ["seconds"])["seconds"]).as_py() or 0.0)


def _per_hour(finished: list[datetime]) -> float | None:
    recent = finished[-RECENT - 1 :]
    seconds = (recent[-1] - recent[0]).total_seconds() if len(recent) > 1 else 0
    return 3600 * (len(recent) - 1) / seconds if seconds else None


def ago(time: datetime) -> str:
    """How long ago, in words short enough for a line."""
    return f"{short(datetime.now(UTC) - time)} ago"


def short(span: timedelta) -> str:
    """A span of time in its two largest units."""
    seconds = int(span.total_seconds())
    units = [
        ("d", seconds // 86400),
        ("h", seconds % 86400 // 3600),
        ("min", seconds % 3600 // 60),
        ("s", seconds % 60),
    ]
    first = next((i for i, (_, amount) in enumerate(units) if amount), len(units) - 1)
    return " ".join(f"{amount} {unit}" for unit, amount in units[first : first + 2] if amount) or "0 s"
