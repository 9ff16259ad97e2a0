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

from circuit.ablated.compact import Edges
from circuit.search.config import PruneConfig
from circuit.search.discretise import bisect_nodes, grown
from circuit.search.elimination import eliminate
from circuit.search.evaluation import Judge
from circuit.search.exploration import explore
from circuit.search.masks import learn_masks
from circuit.search.parts import Parts

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


def node_circuits(judge: Judge, config: PruneConfig, targets: Iterable[float]) -> dict[float, Solution]:
    """The smallest circuits found that reach each target, pruned by nodes, on what `judge` judges by.

    Masks of the whole model are learned for the strictest target and for `config.target_loss`. Targets that not even
    the whole model reaches are left out.
    """
    whole = judge.calibrated(judge.everything())[0]
    targets = sorted(target for target in targets if whole <= target)
    found: dict[float, Solution] = {}
    inside: Solution | None = None
    for target in targets:
        here = config.model_copy(update={"target_loss": target})
        candidates: list[Solution] = []
        if inside is None or target == config.target_loss:
            candidates.append(combined(_explored(judge, here), config, target))
        if inside is not None:
            candidates.append(_shrunk(inside, config, target))
            steps = max(1, round(INSIDE * config.steps))
            nodes = _learned_nodes(judge, here.model_copy(update={"steps": steps}), inside.nodes)
            if not torch.equal(nodes, inside.nodes):
                candidates.append(eliminated(judge, nodes, config, target))
        found[target] = inside = smallest(candidates)
    return found


def _explored(judge: Judge, config: PruneConfig) -> list[Solution]:
    """Circuits of the whole model from every search that the configuration's budget allows."""
    found: list[Solution] = []

    def search(start: PruneConfig) -> float:
        found.append(learned(judge, start, judge.everything()))
        return math.log1p(found[-1].size[0])

    explore(config, search)
    return found


def combined(found: Sequence[Solution], config: PruneConfig, target: float) -> Solution:
    """The smallest circuit there is in any of those found, or in one of them together with the smallest before it.

    Greedy removal ends where no part can be spared. Among the parts of two such circuits there often is a way on to a
    smaller one, for a fraction of what another search takes.
    """
    best = found[0]
    for other in found[1:]:
        judge, both = best.parts.judge, best.nodes | other.nodes
        candidates = [best, other]
        if config.eliminate and judge.calibrated(both)[0] <= target:
            candidates.append(eliminated(judge, both, config, target))
        best = smallest(candidates)
    return best


def learned(judge: Judge, config: PruneConfig, among: Tensor) -> Solution:
    """The circuit of `config.target_loss` among nodes (N,) that reach it: masks, bisection, elimination."""
    return eliminated(judge, _learned_nodes(judge, config, among), config, config.target_loss)


def _learned_nodes(judge: Judge, config: PruneConfig, among: Tensor) -> Tensor:
    """Where the masks miss the target they have dropped nodes too many, which is made up for."""
    target = config.target_loss
    tau = learn_masks(judge.model, judge.data, judge.means, config, judge.at(target), among, judge.watch)
    nodes = bisect_nodes(judge, tau, target, tau > 0)
    return grown(judge, tau > 0, target, among) if nodes is None else nodes


def eliminated(judge: Judge, nodes: Tensor, config: PruneConfig, target: float) -> Solution:
    """The circuit of nodes (N,) that reach the target, without those it can spare if `config` asks for that."""
    parts = Parts(judge, nodes)
    return _shrunk(Solution(parts, parts.everything()), config, target)


def edge_circuits(found: Mapping[float, Solution], config: PruneConfig) -> dict[float, Solution]:
    """The same circuits pruned by edges as well: weights that the target loss does not need carry means only.

    Searches start from all edges of a node circuit for the strictest target, for `config.target_loss`, and wherever the
    node circuit has become clearly smaller since, as long as that gives fewer edges than a search inside the last.
    """
    cut: dict[float, Solution] = {}
    inside: Solution | None = None
    started_at, pays = math.inf, True
    for target, solution in found.items():
        candidates = [_shrunk(inside, config, target)] if inside else []
        if target == config.target_loss or (pays and solution.size[0] < SMALLER * started_at):
            parts = Parts(solution.parts.judge, solution.nodes, edges=True)
            candidates.append(_shrunk(Solution(parts, parts.everything()), config, target))
            started_at, pays = solution.size[0], smallest(candidates) is candidates[-1]
        cut[target] = inside = smallest(candidates)
    return cut


def smallest(candidates: Sequence[Solution]) -> Solution:
    """The one of fewest edges, of those the one of fewest nodes."""
    return min(candidates, key=lambda solution: solution.size)


def _shrunk(solution: Solution, config: PruneConfig, target: float) -> Solution:
    if not config.eliminate:
        return solution
    return solution._replace(keep=eliminate(solution.parts, solution.keep, target))
