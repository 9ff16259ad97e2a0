"""What became of a trial: its row, written last of all that it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from circuit.search.config import SEARCH_VERSION
from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.frontier.counting import counts
from sweeps.frontier.rows import read_rows, row_uri, write_circuit_rows, write_trial_row
from sweeps.search.objectives import FINAL, bootstrap_interval, geometric_mean_edges
from sweeps.trial.places import Trial

TableRow = dict[str, Any]
"""Column -> value, of the trials table or the circuits table."""


@dataclass(frozen=True)
class Trained:
    """How training ended, its figures, and the type of activations."""

    status: str
    reason: str
    metrics: Mapping[str, float]
    dtype: str | None = None


def written_row(trial: Trial) -> TableRow | None:
    """The row this attempt of the trial has written, if it has."""
    uri = row_uri(trial.study.root, "trials", trial.key, trial.attempt)
    return read_rows(uri)[0] if storage.exists(uri) else None


def publish(trial: Trial, circuits: list[TableRow], row: TableRow) -> None:
    """Write the trial's rows, its own last, and drop the checkpoints nobody needs. Rows that are there stay."""
    assert row["status"] in FINAL, row["status"]
    write_circuit_rows(trial.study.root, trial.key, circuits, trial.attempt)
    write_trial_row(trial.study.root, row)
    with suppress(InputError):  # left behind, they cost room; the trial has ended all the same
        storage.remove(storage.join(trial.train_root, trial.key))


def trial_row(trial: Trial, trained: Trained, circuits: list[TableRow]) -> TableRow:
    """The trial's row: configuration, figures of training, and what the circuits come to."""
    study, metrics = trial.study, trained.metrics
    found, faithful = (counts(circuits, study.target_loss, method) for method in ("node", "faithful"))
    interval = bootstrap_interval(found.edges) or (None, None)
    enough = found.solved >= study.min_tasks_solved and len(found.edges) > 0
    figures = ("train_loss", "val_loss", "dead_neurons", "kurtosis", "active", "flops", "train_seconds")
    whole = ("l0", "total_params", "tokens", "devices")  # devices: of the study that trained the model
    return (
        _described(trial)
        | {name: metrics.get(name) for name in figures}
        | {"active_neurons": metrics.get("active.mlp.act")}
        | {name: int(metrics[name]) for name in whole if name in metrics}
        | {
            "status": trained.status,
            "dtype": trained.dtype,
            "reason": trained.reason,
            "eligible": trained.status == "ok" and enough,
            "tasks_solved": found.solved,
            "tasks_counted": len(found.edges),
            "tasks_without_edges": found.without_edges,
            "tasks_failing_heldout": found.failing_heldout,
            "circuit_edges": geometric_mean_edges(found.edges),
            "circuit_edges_low": interval[0],
            "circuit_edges_high": interval[1],
            # All circuits that an earlier version of this program stored stay, and their version with them.
            "search_version": circuits[0].get("search_version", SEARCH_VERSION) if circuits else SEARCH_VERSION,
        }
        | (_faithful(faithful.edges) if study.pruning.ablation == "subsets" else {})
    )


def _faithful(edges: Sequence[int]) -> TableRow:
    """What circuits of method faithful come to."""
    low, high = bootstrap_interval(edges) or (None, None)
    return {
        "faithful_tasks": len(edges),
        "faithful_edges": geometric_mean_edges(edges),
        "faithful_edges_low": low,
        "faithful_edges_high": high,
    }


def failed_row(trial: Trial, reason: str) -> TableRow:
    """The row of a trial that came to nothing."""
    return _described(trial) | {"status": "failed", "reason": reason, "eligible": False}


def _described(trial: Trial) -> TableRow:
    """What is known of a trial before it is run."""
    config, study = trial.config, trial.study
    return {
        "study": study.name,
        "trial": trial.key,
        "suggestion": trial.index,
        "kind": config.kind,
        "attempt": trial.attempt,
        "retried": trial.attempt > 0,
        "devices": study.resources.devices,
        "seed": config.training.seed,
        "d_model": config.model.d_model,
        "n_layer": config.model.n_layer,
        "fraction": config.training.fraction,
        "target_loss": study.target_loss,
        "tasks_tried": len(study.task_sources),
        "data": trial.data_key,
        "config": config.canonical_json(),
    }
