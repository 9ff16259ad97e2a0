"""What a trial is: train a model, publish it, find a circuit for every task, write rows, report to the search.

`run_trial` is the table of contents. It runs as Tune's trainable and holds almost no resources: training workers and
pruning tasks are placed by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune

from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.store_errors import StorageUnavailable, redacted
from sweeps.objectives import FINAL, METRICS, bootstrap_interval, geometric_mean_edges, objectives
from sweeps.rows import read_rows, row_uri, write_circuit_rows, write_trial_row
from sweeps.space import TrialConfig
from sweeps.study import Study

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What all trials of a study share: the study, the URI of its tokens, the attempts of retried trials."""

    study: Study
    data: str
    attempts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One trial and where its things go. The key is the name of everything it writes."""

    plan: Plan
    key: str
    index: int
    config: TrialConfig

    @classmethod
    def of(cls, config: Mapping[str, Any], plan: Plan) -> Trial:
        """The trial that the search handed to Tune as `config`."""
        return cls(plan, config["key"], config["index"], TrialConfig.model_validate(config["trial"]))

    @property
    def study(self) -> Study:
        return self.plan.study

    @property
    def attempt(self) -> int:
        return self.plan.attempts.get(self.key, 0)

    @property
    def data_key(self) -> str:
        """Name of the tokens that it is trained on, which changes with the text."""
        return self.plan.data.split("?")[0].rsplit("/", 1)[-1]

    @property
    def model_uri(self) -> str:
        return storage.join(self.study.root, "models", self.key)

    @property
    def circuits_uri(self) -> str:
        return storage.join(self.study.root, "circuits", self.key)

    @property
    def train_root(self) -> str:
        """Where Ray Train's runs lie; that of this trial bears its key."""
        return storage.join(self.study.root, "ray", "train")

    @property
    def checkpoints_uri(self) -> str:
        """Where training keeps its state, by which a trial that was broken off is continued on the same text."""
        return storage.join(self.train_root, self.key, f"checkpoints-{self.data_key}")


@dataclass(frozen=True)
class Trained:
    """How training ended, its figures, and the type of activations."""

    status: str
    reason: str
    metrics: Mapping[str, float]
    dtype: str | None = None


def run_trial(config: Mapping[str, Any], plan: Plan) -> None:
    """Everything a trial does; Tune calls it with what `StudySearch` suggested.

    What our own code raises becomes a row with status failed. A process that dies is Tune's to try again, and if
    that fails too, the driver writes the row.
    """
    from sweeps.ray_prune import find_circuits
    from sweeps.ray_train import train_model

    trial = Trial.of(config, plan)
    if (row := stored_row(trial)) is not None:  # an earlier process ended between its row and its report
        return report_end(row)
    circuits: list[Row] = []
    prune_seconds = 0.0
    try:
        trained = train_model(trial)
        if trained.status == "ok":
            started = time.monotonic()
            circuits = find_circuits(trial, report_pruning)
            prune_seconds = time.monotonic() - started
        row = trial_row(trial, trained, circuits) | {"prune_seconds": prune_seconds}
    except Exception as error:
        if is_crash(error):
            raise
        row = failed_row(trial, one_line(error))
    publish(trial, circuits, row)
    return report_end(row)


def stored_row(trial: Trial) -> Row | None:
    """The row this attempt of the trial has written, if it has."""
    uri = row_uri(trial.study.root, "trials", trial.key, trial.attempt)
    return read_rows(uri)[0] if storage.exists(uri) else None


def report_end(row: Row) -> None:
    """The trial's figures for the search, and its row for the driver to show."""
    tune.report(dict(zip(METRICS, objectives(row), strict=True)) | {"stage": "done", "row": row})


def report_pruning(done: int, total: int) -> None:
    """Progress of pruning, for the driver to show."""
    tune.report({"stage": "pruning", "tasks_done": done, "tasks": total})


def publish(trial: Trial, circuits: list[Row], row: Row) -> None:
    """Write the trial's rows, its own last, and drop the checkpoints nobody needs any more."""
    assert row["status"] in FINAL, row["status"]
    write_circuit_rows(trial.study.root, trial.key, circuits, trial.attempt)
    write_trial_row(trial.study.root, row)
    with suppress(InputError):  # left behind, they cost room; the trial has ended all the same
        storage.remove(storage.join(trial.train_root, trial.key))


def trial_row(trial: Trial, trained: Trained, circuits: list[Row]) -> Row:
    """The trial's row: configuration, figures of training, and what the circuits come to."""
    study, metrics = trial.study, trained.metrics
    compared = [c for c in circuits if (c["target_loss"], c["method"]) == (study.target_loss, "node")]
    solved = [c["edges"] for c in compared if c["status"] == "ok"]
    interval = bootstrap_interval([max(1, n) for n in solved]) or (None, None)
    figures = ("train_loss", "val_loss", "dead_neurons", "kurtosis", "active", "flops", "train_seconds")
    counts = ("l0", "total_params", "tokens")
    return (
        _described(trial)
        | {name: metrics.get(name) for name in figures}
        | {"active_neurons": metrics.get("active.mlp.act")}
        | {name: int(metrics[name]) for name in counts if name in metrics}
        | {
            "status": trained.status,
            "dtype": trained.dtype,
            "reason": trained.reason,
            "eligible": trained.status == "ok" and len(solved) >= study.min_tasks_solved,
            "tasks_solved": len(solved),
            "circuit_edges": geometric_mean_edges(solved),
            "circuit_edges_low": interval[0],
            "circuit_edges_high": interval[1],
        }
    )


def failed_row(trial: Trial, reason: str) -> Row:
    """The row of a trial that came to nothing."""
    return _described(trial) | {"status": "failed", "reason": reason, "eligible": False}


def _described(trial: Trial) -> Row:
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


def is_crash(error: BaseException) -> bool:
    """Whether a process, node or store was lost (to be tried again) rather than our code raised (as it would again)."""
    causes = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    return any(
        (isinstance(cause, ray.exceptions.RayError) and not isinstance(cause, ray.exceptions.RayTaskError))
        or type(cause).__name__ in ("WorkerHealthCheckFailedError", "PreemptionError")
        or _is_loss(getattr(cause, "_base_exc", None) or getattr(cause, "cause", None) or cause)
        for cause in causes.values()
    )


def _is_loss(error: BaseException) -> bool:
    """Whether an error of our code means that something else is gone: the store, or a worker it was talking to.

    The workers that are left raise at once; that the machine of another is gone takes Ray seconds to see.
    """
    lost_peer = type(error).__name__ in ("DistBackendError", "DistNetworkError") or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )
    return lost_peer or isinstance(error, StorageUnavailable)


def one_line(error: BaseException) -> str:
    """The innermost reason of an error, as one line."""
    causes = getattr(error, "worker_failures", None)
    if causes:
        error = next(iter(causes.values()))
    error = getattr(error, "_base_exc", None) or getattr(error, "cause", None) or error
    text = " ".join(str(error).split())
    return redacted(f"{type(error).__name__}: {text}")[:500]
