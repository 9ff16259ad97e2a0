"""Searching for circuits that hold whatever part of the rest is ablated (METHOD 11).

Ablating all other nodes at once is a loophole: among thousands of nodes held at their means a search finds sets that
matter but cancel each other. Here a circuit has to reach its target, under one calibration, with all other nodes
ablated, with none, and in *worlds* in each of which a random subset of them is ablated.

Subsets are many and each takes a forward pass of most of the model. So a search starts with a few; those in which a
circuit found so far fails are added, and it takes nodes back until it holds there too. It takes them from the circuit
that masks have learned, which holds in nearly every subset: what it does there is what may be asked.

Shapes: N nodes of a model in the order of `NodeIndex`, K subsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuit.ablated.batches import all_batches
from circuit.ablated.calibration import Calibration, softened, task_loss
from circuit.search.evaluation import Judge, World
from circuit.tasks import PairBatch

WORLD_PROBABILITIES = (0.9, 0.75, 0.5, 0.25)
"""With which each other node is ablated in the random subsets of a search, in turn."""

WORLD_PAIRS = 12
"""Pairs that each subset of a search is judged on; other subsets on others, in turn."""

LIMIT = 1.3
"""Times the target that the loss in a subset of the search may be; or, if that is more,"""

EXCUSED = 1.2
"""times what the circuit has there that masks have learned, but never more than"""

LAST_LIMIT = 2.0
"""times the target."""

ENOUGH = 0.7
"""Share of the target at which a loss in several worlds is low enough for a softer calibration."""

KNOWN = 8
"""Subsets that a search starts with."""

FRESH = 32
"""Fresh subsets that a circuit is tried in at a time,"""

SPARED = 1
"""in how many of them it may fail,"""

ADDED = 4
"""how many of those in which it fails are added, the worst first, and"""

HARDENINGS = 3
"""how many times at the most it is tried."""

CALIBRATING = 64
"""Fresh subsets with which a circuit is calibrated in the end."""


def random_subsets(n: int, probabilities: Sequence[float], generator: torch.Generator) -> Tensor:
    """(K, N) true where a node is left alone, one subset for each probability of ablation."""
    left = 1 - torch.tensor(probabilities)[:, None]
    return torch.rand(len(probabilities), n, generator=generator) < left


def worlds(data: PairBatch, subsets: Tensor, pairs: int = WORLD_PAIRS, start: int = 0) -> list[World]:
    """Worlds of subsets (K, N), those that leave the fewest nodes alone first, each with the next `pairs` pairs of the
    data, round and round."""
    size = min(pairs, data.n_pairs)
    order = subsets.sum(1).argsort(stable=True)
    rows = [(torch.arange(size) + (start + k) * size) % data.n_pairs for k in range(len(subsets))]
    return [
        World(subset, all_batches(data.some(row), subset.device), LIMIT)
        for subset, row in zip(subsets[order], rows, strict=True)
    ]


class Worlds:
    """The worlds in which circuits among nodes (N,) have to hold at a target loss: those known so far, and fresh ones
    to try them in."""

    def __init__(self, judge: Judge, seed: int, among: Tensor, target: float) -> None:
        self.plain, self.among, self.target, self.drawn = judge, among, target, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.learned: tuple[Tensor, Calibration] | None = None
        self.known = self._fresh(KNOWN)

    @property
    def judge(self) -> Judge:
        """By all other nodes ablated, and each of the known subsets, under one calibration."""
        return self._with(self.known, ENOUGH * self.target)

    def start(self, nodes: Tensor) -> None:
        """From nodes (N,) that reach the target with all others ablated: limits go by what these have in a subset,
        under the softest calibration with which they do."""
        margins = self.plain.margins(nodes)
        fit = softened(self.plain.fitted(margins)[1], margins, self.plain.sides, self.target)
        self.learned = (nodes, fit)
        self.known = self._excused(self.known)

    def failures(self, nodes: Tensor) -> int:
        """In how many fresh subsets nodes (N,) fail; the worst of these are known from now on."""
        _, calibration = self.judge.calibrated(nodes)
        fresh = self._fresh(FRESH)
        losses = self.plain.among(fresh).by_world(nodes, calibration)
        excess = {i: loss / world.limit for i, (world, loss) in enumerate(zip(fresh, losses, strict=True))}
        failed = sorted((i for i in excess if excess[i] > self.target), key=lambda i: -excess[i])
        self.known = [*self.known, *(fresh[i] for i in failed[:ADDED])]
        return len(failed)

    def calibration(self, nodes: Tensor) -> Calibration:
        """The best for the worst of known and fresh subsets with which nodes (N,) reach the target where all others are
        ablated."""
        _, found = self._with([*self.known, *self._fresh(CALIBRATING)], 0.0).calibrated(nodes)
        margins, sides = self.plain.margins(nodes), self.plain.sides
        if float(task_loss(margins.double(), sides, found)) <= self.target:
            return found
        return softened(self.plain.fitted(margins)[1], margins, sides, self.target)

    def _with(self, others: Sequence[World], enough: float) -> Judge:
        return self.plain.among([self.plain.worlds[0], *others], enough)

    def _fresh(self, count: int) -> list[World]:
        probabilities = (WORLD_PROBABILITIES * (-(-count // len(WORLD_PROBABILITIES))))[:count]
        subsets = random_subsets(len(self.among), probabilities, self.generator).to(self.among.device) & self.among
        self.drawn += count
        return self._excused(worlds(self.plain.data, subsets, start=self.drawn - count))

    def _excused(self, drawn: Sequence[World]) -> list[World]:
        if self.learned is None:
            return list(drawn)
        losses = self.plain.among(drawn).by_world(*self.learned)
        limits = [min(max(LIMIT, EXCUSED * loss / self.target), LAST_LIMIT) for loss in losses]
        return [world._replace(limit=limit) for world, limit in zip(drawn, limits, strict=True)]
