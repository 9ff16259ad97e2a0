"""From ordered nodes to the fewest that reach the target loss (METHOD 6, discretise).

Shapes: N all nodes of a model, in the order of `NodeIndex`; `keep` is boolean (N,).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from circuit.search.evaluation import Judge

GROWTH = 0.25
"""Share of its nodes by which a circuit that misses its target grows at a time, and"""

LEAST_GROWTH = 8
"""how many nodes that are at the least."""


def fewest(reaches: Callable[[int], bool], low: int, high: int) -> int:
    """Least n in [low, high] with reaches(n), for a `reaches` that stays true once it is, and is at `high`."""
    while low < high:
        middle = (low + high) // 2
        if reaches(middle):
            high = middle
        else:
            low = middle + 1
    return high


def halved(count: int) -> list[int]:
    """count, half of it, and so on down to 1."""
    return [] if count < 1 else [count, *halved(count // 2)]


def bisect_nodes(judge: Judge, tau: Tensor, target: float, among: Tensor | None = None) -> Tensor | None:
    """The fewest nodes (N,) of highest tau that reach the target loss; None if not even all of them do.

    `among` (N,) are the nodes to choose from; all of them if it is left out.

    Losses are not quite monotone in the number of nodes; what comes out reaches the target in any case.
    """
    among = torch.ones_like(tau, dtype=torch.bool) if among is None else among
    order = tau.masked_fill(~among, -torch.inf).argsort(descending=True, stable=True)[: int(among.sum())]

    def first(count: int) -> Tensor:
        return torch.zeros_like(tau, dtype=torch.bool).index_fill(0, order[:count], True)

    def reaches(count: int) -> bool:
        return judge.calibrated(first(count))[0] <= target

    learned = int((tau[order] > 0).sum())
    if reaches(learned):
        return first(fewest(reaches, 0, learned))
    if not reaches(len(order)):
        return None
    return first(fewest(reaches, learned + 1, len(order)))


def regrow(reaches: Callable[[Tensor], bool], worth: Callable[[Tensor], Tensor], keep: Tensor, among: Tensor) -> Tensor:
    """`keep` (N,), which does not reach what it should, with those nodes of `among` (N,), which does, that it lacks.

    Nodes are added for which the loss falls the most per gate, as far as first order tells by `worth` (N,) of a
    circuit: anew after every `GROWTH` of it, and of the last ones no more than it takes.
    """
    while True:
        off = (among & ~keep).nonzero().squeeze(1)
        assert len(off), "the nodes to choose from reach it"
        count = max(LEAST_GROWTH, round(GROWTH * int(keep.sum())))
        best = off[worth(keep)[off].argsort(descending=True, stable=True)[:count]]
        if reaches(larger := keep.index_fill(0, best, True)):
            break
        keep = larger
    return keep.index_fill(0, best[: fewest(lambda n: reaches(keep.index_fill(0, best[:n], True)), 1, len(best))], True)
