"""Whether searches from other seeds find the same nodes (METHOD 6, faithfulness)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from torch import Tensor

from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.targets import Solution, edge_circuits, node_circuits

Found = Mapping[str, Mapping[float, Solution]]
"""Method -> target loss -> circuit."""


def stability(judge: Judge, config: PruneConfig, found: Found) -> dict[tuple[str, float], float]:
    """By method and target loss, the mean overlap of kept nodes over all pairs of searches.

    The searches are the one that gave `found`, and `config.stability` more, equal but for seeds that no other uses.
    """
    targets = list(found["node"])
    searches = [found]
    for i in range(1, config.stability + 1):
        nodes = node_circuits(judge, _reseeded(config, i), targets)
        searches.append({"node": nodes, "edge": edge_circuits(nodes, config) if found["edge"] else {}})
    return {
        (method, target): mean_overlap([search[method][target].nodes for search in searches])
        for method, circuits in found.items()
        for target in circuits
    }


def mean_overlap(sets: Sequence[Tensor]) -> float:
    """Mean over all pairs of the share that two sets of nodes, each boolean (N,), have in common of what is in either;
    1 of empty sets."""
    pairs = list(itertools.combinations(sets, 2))
    return sum(_overlap(a, b) for a, b in pairs) / len(pairs)


def _overlap(a: Tensor, b: Tensor) -> float:
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def _reseeded(config: PruneConfig, i: int) -> PruneConfig:
    return config.model_copy(update={"seed": config.seed + i * config.restarts})
