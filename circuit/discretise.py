"""From ordered nodes to the fewest that reach the target loss (METHOD 6, discretise), and fewer still.

Shapes: N all nodes of a model, in the order of `NodeIndex`; `keep` is boolean (N,).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from circuit.evaluation import Judge

PATIENCE = 8
"""Single nodes in a row that may prove needed before elimination stops looking among the more harmful rest."""


def fewest(reaches: Callable[[int], bool], low: int, high: int) -> int:
    """Least n in [low, high] with reaches(n), for a `reaches` that stays true once it is, and is at `high`."""
    while low < high:
        middle = (low + high) // 2
        if reaches(middle):
            high = middle
        else:
            low = middle + 1
    return high


def bisect_nodes(judge: Judge, tau: Tensor, target: float) -> Tensor | None:
    """The fewest nodes (N,) of highest tau that reach the target loss; None if not even all of them do.

    Losses are not quite monotone in the number of nodes; what comes out reaches the target in any case.
    """
    order = tau.argsort(descending=True, stable=True)

    def first(count: int) -> Tensor:
        return torch.zeros_like(tau, dtype=torch.bool).index_fill(0, order[:count], True)

    def reaches(count: int) -> bool:
        return judge.calibrated(first(count))[0] <= target

    learned = int((tau > 0).sum())
    if reaches(learned):
        return first(fewest(reaches, 0, learned))
    if not reaches(len(tau)):
        return None
    return first(fewest(reaches, learned + 1, len(tau)))


def eliminate(judge: Judge, keep: Tensor, target: float) -> Tensor:
    """Nodes (N,) left when those that the target loss can spare are removed from `keep`, which reaches it.

    Passes go through the nodes from the least harmful on, until one removes nothing.
    """
    while True:
        left = _one_pass(judge, keep, target)
        if torch.equal(left, keep):
            return keep
        keep = left


def _one_pass(judge: Judge, keep: Tensor, target: float) -> Tensor:
    """Removes the longest run of nodes whose estimated harms add up to what the loss may still rise, or half of it,
    and so on down to single nodes; every removal is checked by the loss itself."""
    loss, calibration = judge.calibrated(keep)
    harm = judge.harm(keep, calibration)
    queue = harm.masked_fill(~keep, torch.inf).argsort(stable=True)[: int(keep.sum())]
    failures, limit = 0, len(queue)
    while len(queue) and failures < PATIENCE:
        affordable = int((harm[queue].clamp_min(0).cumsum(0) <= target - loss).sum())
        group = max(1, min(affordable, limit))
        without = keep.index_fill(0, queue[:group], False)
        candidate = judge.calibrated(without)[0]
        if candidate <= target:
            keep, queue, loss, failures, limit = without, queue[group:], candidate, 0, 2 * group
        elif group > 1:
            limit = group // 2
        else:
            queue, failures = queue[1:], failures + 1
    return keep
