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

from circuit.ablated.calibration import Calibration
from circuit.ablated.compact import Edges
from circuit.search.attribution import attributions
from circuit.search.config import Method, PruneConfig
from circuit.search.discretise import bisect_nodes, regrow
from circuit.search.elimination import eliminate
from circuit.search.evaluation import Judge
from circuit.search.exploration import explore
from circuit.search.masks import learn_masks
from circuit.search.parts import Parts
from circuit.search.subsets import Subsets, spared

INSIDE = 0.25
"""Share of the steps of mask learning that a search inside a stricter circuit takes: little is left to learn."""

SMALLER = 0.9
"""Share of its edges that a node circuit has shrunk to where its edges are worth another search from all of them."""


class Solution(NamedTuple):
    """A circuit as a part of its `parts`; the `calibration` under which it reaches its target, where that is another
    than the best for all other nodes ablated."""

    parts: Parts
    keep: Tensor
    calibration: Calibration | None = None

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


def find(
    judge: Judge, config: PruneConfig, method: Method, targets: Iterable[float], among: Tensor | None = None
) -> dict[float, Solution]:
    """The smallest circuits found by a method that reach each target, on what `judge` judges by; `among` (N,), if it is
    given, are the nodes to choose from. Targets that not even all of these reach are left out."""
    if method == "faithful":
        return faithful_circuits(judge, config, targets, among)
    nodes = node_circuits(judge, config, targets, among)
    return edge_circuits(judge, nodes, config) if method == "edge" else nodes


def node_circuits(
    judge: Judge, config: PruneConfig, targets: Iterable[float], among: Tensor | None = None
) -> dict[float, Solution]:
    """Circuits pruned by nodes that reach each target with all other nodes ablated, whatever `config.ablation`.

    Masks of the whole model are learned for the strictest target and for `config.target_loss`.
    """
    return _circuits(judge, config.against("all"), targets, among)


def faithful_circuits(
    judge: Judge, config: PruneConfig, targets: Iterable[float], among: Tensor | None = None
) -> dict[float, Solution]:
    """The same of circuits that reach it whatever subset of the others is ablated, whatever `config.ablation`."""
    return _circuits(judge, config.against("subsets"), targets, among)


def _circuits(
    judge: Judge, config: PruneConfig, targets: Iterable[float], among: Tensor | None
) -> dict[float, Solution]:
    """Circuits pruned by nodes, held against `config.ablation`."""
    among = judge.everything() if among is None else among
    whole = judge.calibrated(among)[0]
    targets = sorted(target for target in targets if whole <= target)
    found: dict[float, Solution] = {}
    inside: Solution | None = None
    for target in targets:
        here = config.model_copy(update={"target_loss": target})
        candidates: list[Solution] = []
        if inside is None or target == config.target_loss:
            candidates.append(_explore(judge, here, among))
        if inside is not None:
            candidates += _inside(judge, here, inside)
        if candidates:
            found[target] = inside = smallest(candidates)
    return found


def _explore(judge: Judge, config: PruneConfig, among: Tensor) -> Solution:
    """The smallest circuit among nodes (N,) from every search that the configuration's budget allows."""
    found: list[Solution] = []

    def search(start: PruneConfig) -> float:
        found.append(_search_once(judge, start, among))
        return math.log1p(found[-1].size[0])

    explore(config, search)
    if config.ablation == "subsets":
        return smallest(found)
    return combine(judge, found, config, config.target_loss)


def _search_once(judge: Judge, config: PruneConfig, among: Tensor) -> Solution:
    """Masks, bisection, elimination; in subsets masks and elimination."""
    target = config.target_loss
    if config.ablation == "all":
        return minimise(judge, learn_nodes(judge, config, among), config, target)
    subsets = Subsets(judge, config.seed, target)
    tau = learn_masks(judge.model, judge.data, judge.means, config, subsets.reached, among, judge.watch)
    return held_in_subsets(subsets, tau > 0, among, config)


def held_in_subsets(subsets: Subsets, learned: Tensor, among: Tensor, config: PruneConfig) -> Solution:
    """The circuit among nodes `learned` (N,) that holds in subsets, without what it can spare. Where they do not hold,
    with more of those `among` (N,)."""
    judge, nodes = subsets.judge, learned
    if not judge.at(subsets.target)(nodes):
        nodes = regrown(judge, nodes, subsets.target, among)
    if not subsets.reached(nodes) and subsets.reached(among):
        nodes = regrow(subsets.reached, subsets.worth, nodes, among)
    subsets.start(nodes)
    if config.eliminate:
        nodes = spared(subsets, nodes)
    parts = Parts(judge.model, nodes)
    return Solution(parts, parts.everything(), subsets.calibration(nodes))


def _inside(judge: Judge, config: PruneConfig, last: Solution) -> list[Solution]:
    """Circuits inside one that was found for a stricter target: cut down further, and from masks of its own."""
    target = config.target_loss
    if config.ablation == "subsets":
        return [last, held_in_subsets(Subsets(judge, config.seed, target), last.nodes, last.nodes, config)]
    candidates = [_shrink(judge, last, config, target)]
    nodes = learn_nodes(judge, config.model_copy(update={"steps": max(1, round(INSIDE * config.steps))}), last.nodes)
    if not torch.equal(nodes, last.nodes):
        candidates.append(minimise(judge, nodes, config, target))
    return candidates


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
    return regrown(judge, tau > 0, target, among) if nodes is None else nodes


def regrown(judge: Judge, keep: Tensor, target: float, among: Tensor) -> Tensor:
    """`keep` (N,), which misses the target loss, with the nodes of `among` (N,), which reaches it, that it lacks."""
    return regrow(judge.at(target), lambda nodes: attributions(judge, nodes, judge.calibrated(nodes)[1]), keep, among)


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
