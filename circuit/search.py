"""The search for the smallest circuits of one task at one or many target losses (METHOD 6).

Targets are taken from the strictest on. The circuit of a looser target is searched for inside that of the stricter
one, so sizes never grow as the target loosens, and one search gives the whole curve.

Shapes: N nodes of a model, in the order of `NodeIndex`; `keep` (N + E,), see `Parts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from circuit.compact import Edges
from circuit.config import PruneConfig
from circuit.discretise import bisect_nodes, grow
from circuit.elimination import eliminate
from circuit.evaluation import Judge
from circuit.exploration import explore
from circuit.masks import learn_masks
from circuit.parts import Parts

VERSION = 2
"""Of the search: raised when it comes to find other circuits, so that sizes kept from before are not taken for its."""

INSIDE = 0.25
"""Share of the steps of mask learning that a search inside a stricter circuit takes: little is left to learn."""

SMALLER = 0.9
"""Share of its edges that a node circuit has shrunk to where its edges are worth another search from all of them."""


class Solution(NamedTuple):
    """A circuit as a part of its `parts`."""

    parts: Parts
    keep: Tensor

    @property
    def nodes(self) -> Tensor:
        """(N,) kept nodes."""
        return self.keep[: self.parts.n_nodes]

    @property
    def edges(self) -> Edges | None:
        """Kept edges; None where the nodes say which they are."""
        return self.parts.edges(self.keep)

    @property
    def size(self) -> tuple[int, int]:
        """Edges, then nodes: what circuits are compared by."""
        return int(self.keep[self.parts.n_nodes :].sum()), int(self.nodes.sum())


def node_circuits(
    judge: Judge, config: PruneConfig, targets: Iterable[float], among: Tensor | None = None
) -> dict[float, Solution]:
    """The smallest circuits found that reach each target, pruned by nodes, on what `judge` judges by.

    Masks of the whole model are learned for the strictest target and for `config.target_loss`. Targets that not even
    the whole model reaches are left out. `among` (N,), if it is given, are the nodes to choose from.
    """
    among = judge.everything() if among is None else among
    whole = judge.calibrated(among)[0]
    targets = sorted(target for target in targets if whole <= target)
    found: dict[float, Solution] = {}
    inside: Solution | None = None
    for target in targets:
        here = config.model_copy(update={"target_loss": target})
        candidates: list[Solution] = []
        if inside is None or target == config.target_loss:
            candidates.append(combine(judge, _explore(judge, here, among), config, target))
        if inside is not None:
            candidates.append(_shrink(judge, inside, config, target))
            steps = max(1, round(INSIDE * config.steps))
            nodes = learn_nodes(judge, here.model_copy(update={"steps": steps}), inside.nodes)
            if not torch.equal(nodes, inside.nodes):
                candidates.append(minimise(judge, nodes, config, target))
        found[target] = inside = smallest(candidates)
    return found


def _explore(judge: Judge, config: PruneConfig, among: Tensor) -> list[Solution]:
    """Circuits among nodes (N,) from every search that the configuration's budget allows."""
    found: list[Solution] = []

    def search(start: PruneConfig) -> float:
        found.append(minimise(judge, learn_nodes(judge, start, among), start, start.target_loss))
        return math.log1p(found[-1].size[0])

    explore(config, search)
    return found


def combine(judge: Judge, found: Sequence[Solution], config: PruneConfig, target: float) -> Solution:
    """The smallest circuit there is in any of those found, or in one of them together with the smallest before it.

    Greedy removal ends where no part can be spared. Among the parts of two such circuits there often is a way on to a
    smaller one, for a fraction of what another search takes.
    """
    best = found[0]
    for other in found[1:]:
        both = best.nodes | other.nodes
        candidates = [best, other]
        if config.eliminate and judge.calibrated(both)[0] <= target:
            candidates.append(minimise(judge, both, config, target))
        best = smallest(candidates)
    return best


def learn_nodes(judge: Judge, config: PruneConfig, among: Tensor) -> Tensor:
    """Nodes of those `among` (N,) that reach `config.target_loss`, as masks and bisection find them.

    Where the masks miss the target they have dropped nodes too many, which is made up for.
    """
    target = config.target_loss
    tau = learn_masks(judge.model, judge.data, judge.means, config, judge.at(target), among, judge.watch)
    nodes = bisect_nodes(judge, tau, target, tau > 0)
    return grow(judge, tau > 0, target, among) if nodes is None else nodes


def minimise(judge: Judge, nodes: Tensor, config: PruneConfig, target: float) -> Solution:
    """The circuit of nodes (N,) that reach the target, without those it can spare if `config` asks for that."""
    parts = Parts(judge.model, nodes)
    return _shrink(judge, Solution(parts, parts.everything()), config, target)


def edge_circuits(judge: Judge, found: Mapping[float, Solution], config: PruneConfig) -> dict[float, Solution]:
    """The same circuits pruned by edges as well: weights that the target loss does not need carry means only.

    Searches start from all edges of a node circuit for the strictest target, for `config.target_loss`, and wherever the
    node circuit has become clearly smaller since, as long as that gives fewer edges than a search inside the last.
    """
    cut: dict[float, Solution] = {}
    inside: Solution | None = None
    started_at, pays = math.inf, True
    for target, solution in found.items():
        candidates = [_shrink(judge, inside, config, target)] if inside else []
        if target == config.target_loss or (pays and solution.size[0] < SMALLER * started_at):
            parts = Parts(judge.model, solution.nodes, edges=True)
            candidates.append(_shrink(judge, Solution(parts, parts.everything()), config, target))
            started_at, pays = solution.size[0], smallest(candidates) is candidates[-1]
        cut[target] = inside = smallest(candidates)
    return cut


def smallest(candidates: Sequence[Solution]) -> Solution:
    """The one of fewest edges, of those the one of fewest nodes."""
    return min(candidates, key=lambda solution: solution.size)


def _shrink(judge: Judge, solution: Solution, config: PruneConfig, target: float) -> Solution:
    if not config.eliminate:
        return solution
    return solution._replace(keep=eliminate(judge, solution.parts, solution.keep, target))
