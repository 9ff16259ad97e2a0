"""Figures with their 95 % intervals: over tasks by a bootstrap, over seeds and trials by Student's t.

Seeds and trials are few, and a bootstrap of three of them is far too narrow; tasks are more, and their ratios are
skewed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from sweeps.frontier.matched import COVERAGE
from sweeps.search.objectives import bootstrap_interval

LEAST_TASKS = 4
"""Tasks below which a bootstrap over tasks is no interval: of two it only says which two there are."""


@dataclass(frozen=True)
class Measured:
    """A figure, the ends of its 95 % interval where there is one, what it is over, and how it is written."""

    value: float
    low: float | None
    high: float | None
    over: str
    form: str = "{:.3g}"

    def __str__(self) -> str:
        interval = (
            "" if self.low is None or self.high is None else f" ({self._text(self.low)} to {self._text(self.high)})"
        )
        return f"{self._text(self.value)}{interval}, {self.over}" if math.isfinite(self.value) else self.over

    def _text(self, value: float) -> str:
        return self.form.format(value)


def counted_as(n: int, what: str) -> str:
    """A number of things in words: 1 task, 2 tasks."""
    return f"{n} {what}" + ("" if n == 1 else "s")


RATIO, NATS, AS_SHARE = "{:.2f} ×", "{:+.3f}", "{:.2f}"
"""How ratios, differences in nats and shares are written."""


def over_tasks(ratios: Sequence[float]) -> Measured:
    """Geometric mean of positive ratios, one per task."""
    value = math.exp(float(np.mean(np.log(ratios))))
    low, high = bootstrap_interval(ratios) or (None, None) if len(ratios) >= LEAST_TASKS else (None, None)
    return Measured(value, low, high, counted_as(len(ratios), "task"), RATIO)


def mean_over_tasks(values: Sequence[float], form: str) -> Measured:
    """Mean of values, one per task; percentiles of the same bootstrap, of their exponentials."""
    found = over_tasks([math.exp(value) for value in values])
    ends = [None if end is None else math.log(end) for end in (found.low, found.high)]
    return Measured(math.log(found.value), ends[0], ends[1], found.over, form)


def over_pairs(differences: Sequence[float], form: str = NATS) -> Measured:
    """Mean of differences between trials of the same seed, by Student's t; without an interval below three seeds."""
    n = len(differences)
    mean = float(np.mean(differences))
    over = counted_as(n, "seed")
    if n < 3:
        return Measured(mean, None, None, over, form)
    half = float(stats.t.ppf(0.5 + COVERAGE / 200, n - 1) * np.std(differences, ddof=1) / math.sqrt(n))
    return Measured(mean, mean - half, mean + half, over, form)


def slope_over_trials(x: Sequence[float], y: Sequence[float], form: str = NATS) -> Measured:
    """Least-squares slope of y over x, one point a trial, by Student's t: what is not straight widens it too."""
    fit = stats.linregress(x, y)
    over = counted_as(len(x), "model")
    if len(x) < 4 or len(set(x)) < 3:
        return Measured(float(fit.slope), None, None, over, form)
    half = float(stats.t.ppf(0.5 + COVERAGE / 200, len(x) - 2) * fit.stderr)
    return Measured(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half, over, form)


def factor(slope: Measured) -> Measured:
    """A slope of natural logarithms as what the figure is multiplied by for one more of x."""
    ends = [None if end is None else math.exp(end) for end in (slope.low, slope.high)]
    return Measured(math.exp(slope.value), ends[0], ends[1], slope.over, RATIO)


def slope_over_tasks(x: Any, logs: Any) -> Measured:
    """Slope over x (n) of the mean over tasks of log edges (n, K), as a factor; bootstrap over tasks.

    Every task has a slope of its own; the slope of the mean is the mean of these.
    """
    centred = np.asarray(x, dtype=float) - np.mean(x)
    slopes = centred @ np.asarray(logs) / (centred @ centred)
    found = over_tasks([math.exp(slope) for slope in slopes])
    return Measured(found.value, found.low, found.high, f"{counted_as(len(centred), 'model')}, {found.over}", RATIO)
