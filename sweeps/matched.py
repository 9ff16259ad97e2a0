"""Two groups of trials at equal validation loss: how many times the edges of one the other needs.

Each group's Pareto front is read as a curve of log edges over validation loss, straight between its points. Where both
curves are defined, edges are compared. Seeds of a configuration are averaged first: they are one point. Intervals are
percentiles of a bootstrap over tasks and, within each configuration, over seeds; trials are not resampled, because the
front of a resample always lies above the front.

Shapes: C configurations of a group, K tasks, G losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sparse_model.errors import InputError
from sweeps.comparison import Array, Comparison
from sweeps.pareto import non_dominated

LOSSES = 5
"""Losses at which the groups are compared, from one end of the common range to the other."""
RESAMPLES = 1000
COVERAGE = 95.0
"""Of the intervals, in per cent."""

Curve = tuple[Array, Array]


def matched(comparison: Comparison, groups: Sequence[tuple[str, set[tuple[str, str]]]]) -> Any:
    """A `pyarrow.Table`: edges of two named groups of trials at equal losses, and their ratio with its interval.

    A group is its name and the (study, trial) pairs in it. The last row, whose `val_loss` is null, is the mean over the
    whole common range. Ratios are edges of the second group over edges of the first. InputError where the fronts have
    no validation loss in common.
    """
    samples = [Group(comparison, name, members) for name, members in groups]
    losses = _common_losses(samples)
    first, second = (group.curve_at(losses) for group in samples)
    rng = np.random.default_rng(0)
    draws = np.stack([_resampled(samples, losses, rng) for _ in range(RESAMPLES)])
    low, high = np.percentile(draws, [50 - COVERAGE / 2, 50 + COVERAGE / 2], axis=0)
    rows = {
        "val_loss": [*map(float, losses), None],
        "edges_first": np.exp(_with_mean(first)),
        "edges_second": np.exp(_with_mean(second)),
        "ratio": np.exp(_with_mean(second - first)),
        "ratio_low": np.exp(low),
        "ratio_high": np.exp(high),
    }
    return pa.table(rows)


class Group:
    """The trials of one group, by configuration."""

    def __init__(self, comparison: Comparison, name: str, members: set[tuple[str, str]]) -> None:
        columns = ("study", "trial", "suggestion", "val_loss")
        rows = comparison.trials.select(columns).to_pylist()
        inside = [i for i in np.flatnonzero(comparison.compared) if (rows[i]["study"], rows[i]["trial"]) in members]
        if not inside:
            raise InputError(f"{name}: no trial of this group is compared ({comparison.note()})")
        by_config: dict[Any, list[int]] = {}
        for i in inside:
            row = rows[i]
            key = (row["study"], row["trial"] if row["suggestion"] is None else row["suggestion"])
            by_config.setdefault(key, []).append(int(i))
        self.name, self.trials = name, len(inside)
        self.seeds = [np.array(members) for members in by_config.values()]
        self.losses = np.array([row["val_loss"] for row in rows], dtype=float)
        own = np.log(np.maximum(1.0, comparison.edges))[:, None]
        self.logs = comparison.log_edges if comparison.tasks else own

    def front(self, tasks: Array | slice = slice(None), seeds: Sequence[Array] | None = None) -> Curve:
        """(losses, log edges) of the non-dominated configurations, from the lowest loss on."""
        chosen = self.seeds if seeds is None else seeds
        edges = self.logs[:, tasks].mean(axis=1)
        points = np.array([(self.losses[s].mean(), edges[s].mean()) for s in chosen])
        best = points[non_dominated(points)]
        return best[:, 0], best[:, 1]

    def curve_at(self, losses: Array) -> Array:
        """(G) log edges of the front at the given losses."""
        return np.asarray(np.interp(losses, *self.front()))

    def resampled_at(self, losses: Array, tasks: Array, rng: np.random.Generator) -> Array:
        seeds = [rng.choice(s, len(s)) if len(s) > 1 else s for s in self.seeds]
        return np.asarray(np.interp(losses, *self.front(tasks, seeds)))


def _common_losses(groups: Sequence[Group]) -> Array:
    ends = [(x[0], x[-1]) for x, _ in (group.front() for group in groups)]
    low, high = max(end[0] for end in ends), min(end[1] for end in ends)
    if low > high:
        ranges = ", ".join(f"{group.name} {x[0]:.3f} to {x[1]:.3f}" for group, x in zip(groups, ends, strict=True))
        raise InputError(f"compare: the fronts have no validation loss in common ({ranges})")
    return np.unique(np.linspace(low, high, LOSSES))


def _resampled(groups: Sequence[Group], losses: Array, rng: np.random.Generator) -> Array:
    """(G + 1) log ratios of one resample: the same tasks for both groups."""
    n_tasks = groups[0].logs.shape[1]
    tasks = rng.integers(n_tasks, size=n_tasks)
    first, second = (group.resampled_at(losses, tasks, rng) for group in groups)
    return _with_mean(second - first)


def _with_mean(values: Array) -> Array:
    return np.append(values, values.mean())
