"""The two figures a study minimises, and what the search is told of them.

The frontier's second figure is a mean over the circuits that count, whatever the rest of the tasks came to. Told so, a
sampler would learn to solve few, easy tasks. What it is told is charged instead: a task without a circuit that counts
enters the mean with a constant of the study (`Study.unsolved_edges`), larger than any circuit. That is in what the
sampler is told only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

METRICS = ("val_loss", "circuit_edges")
"""Columns of the frontier: validation loss in nats per token; geometric mean of edges over the tasks that count."""

TOLD = ("val_loss", "charged_edges")
"""What the sampler is told of them, by the names under which trials report it."""

PENALTIES = (20.0, 1e9)
"""Told in place of a figure that does not exist (Optuna wants finite numbers): worse than any real trial's."""

RESAMPLES = 10_000
"""Draws of a bootstrap: its ends then move by about a hundredth of its length."""

FINAL = ("ok", "diverged", "failed")
"""Statuses of a trial that will not be run again."""


def geometric_mean_edges(edges: Sequence[float]) -> float | None:
    """Geometric mean of numbers of edges, all of them above 0; None of no circuit."""
    if not edges:
        return None
    return math.exp(sum(math.log(n) for n in edges) / len(edges))


def charged_edges(row: Mapping[str, Any], unsolved_edges: int) -> float:
    """Geometric mean over a trial's tasks, those that need no edge left out, in which a task without a circuit that
    counts has `unsolved_edges`; 1 where no task is left."""
    n_counted = row["tasks_counted"]
    n_charged = row["tasks_tried"] - n_counted - row["tasks_without_edges"]
    if n_counted + n_charged == 0:
        return 1.0
    logs = n_charged * math.log(unsolved_edges) + (n_counted * math.log(row["circuit_edges"]) if n_counted else 0.0)
    return math.exp(logs / (n_counted + n_charged))


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the geometric mean of positive values, one per task, were other tasks drawn; None below 2 tasks.

    Percentiles over `RESAMPLES` draws of as many tasks with replacement; the same values give the same interval.
    """
    if len(values) < 2:
        return None
    logs = np.log(np.asarray(values, dtype=float))
    draws = np.random.default_rng(0).integers(len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.exp(np.percentile(logs[draws].mean(1), (2.5, 97.5)))
    return float(low), float(high)


def objectives(row: Mapping[str, Any], unsolved_edges: int) -> tuple[float, float]:
    """What the search is told of a trial's row, in the order of `TOLD`.

    A trial that failed or diverged is told at the penalties, any other at its loss and its charged edges. What a trial
    comes to that is run again replaces what it was told at before: what was drawn meanwhile is stored and stays.
    """
    if row["status"] != "ok":
        return PENALTIES
    return row["val_loss"], charged_edges(row, unsolved_edges)
