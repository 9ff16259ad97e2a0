"""Two groups of trials at equal validation loss: how many times the edges of one the other needs.

Each group's Pareto front is read as a curve of log edges over validation loss, straight between its points. Where both
curves are defined, edges are compared. Seeds of a configuration are averaged first: they are one point. Intervals are
percentiles of a bootstrap over tasks and, within each configuration, over seeds; trials are not resampled, because the
front of a resample always lies above the front.

Shapes: N trials compared, n of a group, C configurations of it, K tasks, G losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sparse_model.errors import InputError
from sweeps.frontier.comparison import Array, Comparison

LOSS_POINTS = 5
"""Losses at which the groups are compared, from one end of the common range to the other."""
GROUP_RESAMPLES = 1000
COVERAGE = 95.0
"""Of the intervals, in per cent."""

Staircase = tuple[Array, Array]


def matched(comparison: Comparison, groups: Sequence[tuple[str, Array]]) -> Any:
    """A `pyarrow.Table`: edges of two named groups of trials at equal losses, and their ratio with its interval.

    A group is its name and a boolean (N) over the comparison's trials. The last row, whose `val_loss` is null, is the
    mean over the whole common range. Ratios are edges of the second group over edges of the first. InputError where the
    fronts have no validation loss in common.
    """
    samples = [TrialGroup(comparison, name, members) for name, members in groups]
    losses = _common_losses(samples)
    first, second = (group.curve_at(losses) for group in samples)
    rng = np.random.default_rng(0)
    draws = np.stack([_resampled(samples, losses, rng) for _ in range(GROUP_RESAMPLES)])
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


class TrialGroup:
    """The trials of one group, sorted by configuration; with one trial each, by validation loss.

    `losses` (n), `logs` (n, K); of each configuration where its trials start, and how many seeds they are: (C).
    """

    def __init__(self, comparison: Comparison, name: str, members: Array) -> None:
        inside = np.flatnonzero(comparison.compared & members)
        if not len(inside):
            raise InputError(f"{name}: no trial of this group is compared ({comparison.note()})")
        losses = comparison.trials["val_loss"].to_numpy()
        logs = comparison.log_edges if comparison.tasks else np.log(np.maximum(1.0, comparison.edges))[:, None]
        config = _configurations(comparison.trials.take(inside))
        self.counts = np.bincount(config)
        self.starts = np.cumsum(self.counts) - self.counts
        self.has_seeds = len(self.counts) < len(inside)
        order = inside[np.argsort(config, kind="stable") if self.has_seeds else np.argsort(losses[inside])]
        self.name, self.losses, self.logs = name, losses[order], logs[order]

    def front(self, weights: Array, trials: Array | None = None) -> Staircase:
        """(losses, log edges) of the non-dominated configurations, from the lowest loss on.

        Tasks count by their weights (K), of sum 1; `trials` (n) may stand for the group's own, some of them repeated.
        """
        losses, logs = self.losses, self.logs @ weights
        if not self.has_seeds:
            return _staircase(losses, logs)
        if trials is not None:
            losses, logs = losses[trials], logs[trials]
        losses, logs = (np.add.reduceat(values, self.starts) / self.counts for values in (losses, logs))
        order = np.argsort(losses)
        return _staircase(losses[order], logs[order])

    def curve_at(self, losses: Array) -> Array:
        """(G) log edges of the front at the given losses."""
        return np.asarray(np.interp(losses, *self.front(self.evenly)))

    @property
    def evenly(self) -> Array:
        """Weights by which every task counts the same."""
        return np.full(self.logs.shape[1], 1 / self.logs.shape[1])

    def resampled_at(self, losses: Array, weights: Array, rng: np.random.Generator) -> Array:
        """`curve_at` with tasks so weighted, and as many seeds of each configuration drawn from its own."""
        if not self.has_seeds:
            return np.asarray(np.interp(losses, *self.front(weights)))
        start, count = (np.repeat(values, self.counts) for values in (self.starts, self.counts))
        drawn = start + rng.integers(count)
        return np.asarray(np.interp(losses, *self.front(weights, drawn)))


def _configurations(trials: Any) -> Array:
    """(n) the number of each trial's configuration: seeds of one suggestion share it."""
    study = trials["study"].combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    suggestion = trials["suggestion"]
    own = -1 - np.arange(len(trials))
    key = np.where(suggestion.is_null().to_numpy(), own, suggestion.fill_null(0).to_numpy())
    return np.unique((study.astype(np.int64) << 40) + key, return_inverse=True)[1]


def _staircase(losses: Array, logs: Array) -> Staircase:
    """Of points of ascending loss those with fewer edges than all before them; of one loss the least."""
    best_before = np.minimum.accumulate(np.append(np.inf, logs[:-1]))
    lower = np.flatnonzero(logs < best_before)
    losses, logs = losses[lower], logs[lower]
    last = np.append(losses[1:] != losses[:-1], True)
    return losses[last], logs[last]


def _common_losses(groups: Sequence[TrialGroup]) -> Array:
    ends = [(x[0], x[-1]) for x, _ in (group.front(group.evenly) for group in groups)]
    low, high = max(end[0] for end in ends), min(end[1] for end in ends)
    if low > high:
        ranges = ", ".join(f"{group.name} {x[0]:.3f} to {x[1]:.3f}" for group, x in zip(groups, ends, strict=True))
        raise InputError(f"compare: the fronts have no validation loss in common ({ranges})")
    return np.unique(np.linspace(low, high, LOSS_POINTS))


def _resampled(groups: Sequence[TrialGroup], losses: Array, rng: np.random.Generator) -> Array:
    """(G + 1) log ratios of one resample: the same tasks for both groups."""
    n_tasks = groups[0].logs.shape[1]
    weights = np.bincount(rng.integers(n_tasks, size=n_tasks), minlength=n_tasks) / n_tasks
    first, second = (group.resampled_at(losses, weights, rng) for group in groups)
    return _with_mean(second - first)


def _with_mean(values: Array) -> Array:
    return np.append(values, values.mean())
