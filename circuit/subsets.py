"""Random subsets of the nodes outside a circuit, and a judge by many of them (METHOD 11).

Ablating all other nodes at once is a loophole: among thousands of nodes held at their means a search finds sets that
matter but cancel each other. Here every other node is ablated with a probability, or has its own value.

Shapes: N nodes of a model in the order of `NodeIndex`, K subsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit.batches import all_batches
from circuit.evaluation import Judge, World
from circuit.tasks import PairBatch

PROBABILITIES = (0.9, 0.75, 0.5, 0.25)
"""With which each other node is ablated in the random subsets of a search."""

PAIRS = 16
"""Pairs that each subset of a search is judged on; other subsets on others, in turn."""

LIMIT = 1.5
"""Times the target that the loss in a subset of the search may be."""


def random_subsets(n: int, probabilities: Sequence[float], generator: torch.Generator) -> Tensor:
    """(K, N) true where a node is left alone, one subset for each probability of ablation."""
    left = 1 - torch.tensor(probabilities)[:, None]
    return torch.rand(len(probabilities), n, generator=generator) < left


def worlds(
    data: PairBatch, subsets: Tensor, device: torch.device, pairs: int = PAIRS, limit: float = LIMIT, start: int = 0
) -> list[World]:
    """Worlds of subsets (K, N), those that leave the fewest nodes alone first, each with the next `pairs` pairs of the
    data, round and round."""
    size = min(pairs, data.n_pairs)
    order = subsets.sum(1).argsort(stable=True)
    rows = [(torch.arange(size) + (start + k) * size) % data.n_pairs for k in range(len(subsets))]
    return [
        World(subset.to(device), all_batches(data.some(row), device), limit)
        for subset, row in zip(subsets[order], rows, strict=True)
    ]


def subset_judge(judge: Judge, subsets: Tensor, pairs: int = PAIRS, limit: float = LIMIT) -> Judge:
    """A judge by all other nodes ablated, each of the subsets (K, N), and none, under one calibration."""
    device = judge.sides.device
    none = torch.ones(1, judge.index.total, dtype=torch.bool)
    return judge.among(
        [judge.worlds[0], *worlds(judge.data, torch.cat([subsets.cpu(), none]), device, pairs, limit)]
    )
