"""Points of two figures, both to be small: which are not dominated, and the area they dominate."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Points = Sequence[tuple[float, float]] | np.ndarray[Any, Any]


def non_dominated(points: Points) -> list[int]:
    """Indices of points that no other betters in one figure without being worse in the other; equals all stay.

    They come in order of the first figure.
    """
    if len(points) == 0:
        return []
    pairs = np.asarray(points, dtype=float)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    x, y = pairs[order].T
    best_before = np.minimum.accumulate(np.concatenate(([np.inf], y[:-1])))
    keep = y < best_before
    first = np.maximum.accumulate(np.where(keep, np.arange(len(y)), 0))  # the kept point that may equal this one
    return [int(i) for i in order[keep | ((x == x[first]) & (y == y[first]))]]


def dominated_area(points: Points, reference: tuple[float, float]) -> float:
    """Area between the points and a reference point that is worse than they are; points beyond it add nothing."""
    return list(growing_area(points, reference))[-1] if len(points) else 0.0


def growing_area(points: Points, reference: tuple[float, float]) -> Iterator[float]:
    """`dominated_area` of the first point, of the first two, and so on, in time n log n."""
    right, top = reference
    front = [(-math.inf, top), (right, -math.inf)]  # sorted by x, y falling; the ends are walls
    area = 0.0
    for x, y in points:
        if x < right and y < top:
            at = bisect_left(front, (x, y))
            # The wall on the right has the lowest y of all: only a neighbour to the left, or an equal x, dominates.
            dominated = front[at - 1][1] <= y or (front[at][0] == x and front[at][1] <= y)
            if not dominated:
                area += _added(front, at, float(x), float(y))
        yield area


def _added(front: list[tuple[float, float]], at: int, x: float, y: float) -> float:
    """Put a point that is not dominated into the front, where it belongs, and give the area this adds."""
    end, left, ceiling, added = at, x, front[at - 1][1], 0.0
    while front[end][1] >= y:  # these it dominates
        added += (front[end][0] - left) * (ceiling - y)
        left, ceiling = front[end]
        end += 1
    added += (front[end][0] - left) * (ceiling - y)
    front[at:end] = [(x, y)]
    return added
