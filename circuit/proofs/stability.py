"""Whether searches from other seeds find the same nodes (METHOD 6, faithfulness)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from circuit.search.config import Method, PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.targets import find


def overlap(judge: Judge, config: PruneConfig, method: Method, nodes: Tensor) -> float:
    """Mean overlap of kept nodes over all pairs of searches: the one that gave `nodes` (N,), and `config.stability`
    more, equal but for seeds that no other uses."""
    searches = [nodes]
    for i in range(1, config.stability + 1):
        again = find(judge, _reseeded(config, i), method, (config.target_loss,))
        searches += [solution.nodes for solution in again.values()]
    return mean_overlap(searches)


def mean_overlap(sets: Sequence[Tensor]) -> float:
    """Mean over all pairs of the share that two sets of nodes, each boolean (N,), have in common of what is in either;
    1 of empty sets."""
    pairs = list(itertools.combinations(sets, 2))
    return sum(_overlap(a, b) for a, b in pairs) / len(pairs)


def _overlap(a: Tensor, b: Tensor) -> float:
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def _reseeded(config: PruneConfig, i: int) -> PruneConfig:
    return config.model_copy(update={"seed": (config.seed + i * config.restarts) % 2**64})
