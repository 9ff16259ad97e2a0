"""The two figures a study minimises, and what the search is told of a trial that has none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

METRICS = ("val_loss", "circuit_edges")
"""Validation loss in nats per token; geometric mean over solved tasks of the number of circuit edges."""

PENALTIES = (20.0, 1e9)
"""Told in place of a figure that does not exist (Optuna wants finite numbers): worse than any real trial's."""

RESAMPLES = 10_000
"""Draws of a bootstrap: its ends then move by about a hundredth of its length."""

FINAL = ("ok", "diverged", "failed")
"""Statuses of a trial that will not be run again."""


def geometric_mean_edges(edges: Sequence[int]) -> float | None:
    """Geometric mean of numbers of edges, a circuit without any counted as one; None of no circuit."""
    if not edges:
        return None
    return math.exp(sum(math.log(max(1, n)) for n in edges) / len(edges))


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


def objectives(row: Mapping[str, Any]) -> tuple[float, float]:
    """What the search is told of a trial's row, in the order of `METRICS`.

    A trial that failed or diverged is told at the penalties. One that solves fewer tasks than the
    study asks for keeps its loss, but its few circuits, of the easiest tasks, do not make it look interpretable.
    A trial that was run again after a failure stays told as failed: what came after it was drawn knowing that.
    """
    if row["status"] != "ok" or row["retried"]:
        return PENALTIES
    return row["val_loss"], row["circuit_edges"] if row["eligible"] else PENALTIES[1]
