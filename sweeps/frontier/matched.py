"""Two groups of trials at equal validation loss: how many times the edges of one the other needs.

Each group's Pareto front is read as a curve of log edges over validation loss, straight between its points, and level
from its last point up to the highest loss of the group: trials there are dominated, so the group has a model that is
better and smaller. Where both curves are defined, edges are compared. Seeds of a configuration are averaged first: they
are one point. Intervals are percentiles of a bootstrap over tasks and, within each configuration, over seeds; trials
are not resampled, because the front of a resample always lies above the front.

Tasks are those of the largest comparison of the two groups that have a loss in common: trials of neither group, and
ones that solve little and lie where the other group is not, do not take tasks away.

Shapes: N trials of both groups, n of a group, C configurations of it, K tasks, G losses.
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
    groups have no validation loss in common.
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


def block_between(trials: Any, members: Sequence[Array], solved: Array) -> list[int]:
    """Columns of a boolean (N, K), which trials solve which tasks, on which two groups of them are best compared.

    Tasks are added from the one that most pairs of a trial of each group solve; of the blocks so made of full rows it
    is the one with most pairs × tasks, among those in which the groups have a validation loss in common.
    """
    first, second = members
    losses, config = trials["val_loss"].to_numpy(zero_copy_only=False), _configurations(trials)
    best, chosen, alive = (False, 0), 0, np.ones(len(solved), dtype=bool)
    order = np.argsort(-solved[first].sum(axis=0) * solved[second].sum(axis=0), kind="stable")
    for count, column in enumerate(order, start=1):
        alive &= solved[:, column]
        groups = [np.flatnonzero(alive & group) for group in members]
        pairs = len(groups[0]) * len(groups[1])
        if not pairs:
            break
        low, high = _shared([_reach(losses[group], config[group]) for group in groups])
        if (size := (low <= high, pairs * count)) > best:
            best, chosen = size, count
    return sorted(int(column) for column in order[:chosen])


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
    def reach(self) -> tuple[float, float]:
        """Lowest and highest validation loss of its configurations."""
        return _reach(self.losses, np.repeat(np.arange(len(self.counts)), self.counts) if self.has_seeds else None)

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


def _reach(losses: Array, config: Array | None) -> tuple[float, float]:
    """Lowest and highest mean loss of the configurations (n) that trials are of; None: each of its own."""
    if config is not None:
        _, config = np.unique(config, return_inverse=True)
        losses = np.bincount(config, losses) / np.bincount(config)
    return float(losses.min()), float(losses.max())


def _shared(ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """What ranges have in common; nothing where its lower end is above its upper."""
    return max(low for low, _ in ranges), min(high for _, high in ranges)


def _common_losses(groups: Sequence[TrialGroup]) -> Array:
    low, high = _shared([group.reach for group in groups])
    if low > high:
        ranges = ", ".join(f"{group.name} {group.reach[0]:.3f} to {group.reach[1]:.3f}" for group in groups)
        raise InputError(f"compare: the groups have no validation loss in common ({ranges})")
    return np.unique(np.linspace(low, high, LOSS_POINTS))


def _resampled(groups: Sequence[TrialGroup], losses: Array, rng: np.random.Generator) -> Array:
    """(G + 1) log ratios of one resample: the same tasks for both groups."""
    n_tasks = groups[0].logs.shape[1]
    weights = np.bincount(rng.integers(n_tasks, size=n_tasks), minlength=n_tasks) / n_tasks
    first, second = (group.resampled_at(losses, weights, rng) for group in groups)
    return _with_mean(second - first)


def _with_mean(values: Array) -> Array:
    return np.append(values, values.mean())
