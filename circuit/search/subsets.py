"""Searching for circuits that hold whatever part of the rest is ablated (METHOD 11).

Ablating all other nodes at once is a loophole: among thousands of nodes held at their means a search finds sets that
matter but cancel each other. Here a circuit has to reach its target, under one calibration, with all other nodes
ablated, with none, and in *worlds* in each of which a random subset of them is ablated.

Subsets are many and each takes a forward pass of most of the model. So a search starts with a few; those in which a
circuit found so far fails are added, and it grows until it holds there too. What it can spare is removed once.

Shapes: N nodes of a model in the order of `NodeIndex`, K subsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit.ablated.batches import all_batches
from circuit.search.discretise import regrow
from circuit.search.evaluation import Judge, World
from circuit.tasks import PairBatch

WORLD_PROBABILITIES = (0.9, 0.75, 0.5, 0.25)
"""With which each other node is ablated in the random subsets of a search, in turn."""

WORLD_PAIRS = 12
"""Pairs that each subset of a search is judged on; other subsets on others, in turn."""

LIMIT = 2.5
"""Times the target that the loss in a subset of the search may be."""

FRESH = 12
"""Fresh subsets that a circuit is tried in at a time, and"""

ADDED = 3
"""how many of those in which it fails are added, the worst first."""

HARDENINGS = (2, 1)
"""Times at the most that it is tried so, before what it can spare is removed; and after that, before it is again."""


def random_subsets(n: int, probabilities: Sequence[float], generator: torch.Generator) -> Tensor:
    """(K, N) true where a node is left alone, one subset for each probability of ablation."""
    left = 1 - torch.tensor(probabilities)[:, None]
    return torch.rand(len(probabilities), n, generator=generator) < left


def worlds(
    data: PairBatch, subsets: Tensor, pairs: int = WORLD_PAIRS, limit: float = LIMIT, start: int = 0
) -> list[World]:
    """Worlds of subsets (K, N), those that leave the fewest nodes alone first, each with the next `pairs` pairs of the
    data, round and round."""
    size = min(pairs, data.n_pairs)
    order = subsets.sum(1).argsort(stable=True)
    rows = [(torch.arange(size) + (start + k) * size) % data.n_pairs for k in range(len(subsets))]
    return [
        World(subset, all_batches(data.some(row), subset.device), limit)
        for subset, row in zip(subsets[order], rows, strict=True)
    ]


class Worlds:
    """The worlds in which circuits among nodes (N,) have to hold: those known so far, and fresh ones to try them in."""

    def __init__(self, judge: Judge, seed: int, among: Tensor) -> None:
        self.plain, self.among, self.tried = judge, among, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.known = self._drawn(len(WORLD_PROBABILITIES))

    @property
    def judge(self) -> Judge:
        """By all other nodes ablated, each of the known subsets, and none, under one calibration."""
        subsets = torch.cat([self.known, self.among[None]])
        return self.plain.among([self.plain.worlds[0], *worlds(self.plain.data, subsets)])

    def harden(self, nodes: Tensor, target: float, rounds: int) -> Tensor:
        """Nodes (N,) with those they lack to reach the target in fresh subsets too, tried for so many rounds."""
        for _ in range(rounds):
            failed = self._failed(nodes, target)
            self.known = torch.cat([self.known, failed])
            reached = self.judge.calibrated(nodes)[0] <= target
            if not len(failed) and reached:
                break
            if not reached:
                nodes = regrow(self.judge, nodes, target, self.among)
        return nodes

    def _failed(self, nodes: Tensor, target: float) -> Tensor:
        """(K, N) of fresh subsets, the worst of those in which nodes (N,) miss the target."""
        _, calibration = self.judge.calibrated(nodes)
        fresh = worlds(self.plain.data, self._drawn(FRESH), start=self.tried)
        self.tried += FRESH
        losses = torch.tensor(self.plain.among(fresh).by_world(nodes, calibration))
        worst = losses.argsort(descending=True, stable=True)[:ADDED]
        failed = [fresh[i].rest for i in worst.tolist() if float(losses[i]) > LIMIT * target]
        return torch.stack(failed) if failed else self.known[:0]

    def _drawn(self, count: int) -> Tensor:
        probabilities = (WORLD_PROBABILITIES * (-(-count // len(WORLD_PROBABILITIES))))[:count]
        subsets = random_subsets(len(self.among), probabilities, self.generator)
        return subsets.to(self.among.device) & self.among
