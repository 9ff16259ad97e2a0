"""Other ways to order a model's parts, for comparison: by attribution, or at random (the paper's figure 31).

Attributions are of the *margin*, prompt by prompt, and absolute before they are averaged: what helps some prompts and
harms others would cancel in a gradient of the mean loss. Per edge they are the strongest baseline known (edge
attribution patching; MIB, Mueller et al. 2025). All orders go through the bisection that learned masks go through.

Shapes: N nodes of a model in the order of `NodeIndex`, E its edges in the order of `Parts`, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from circuit.ablated.compact import Edges
from circuit.search.attribution import margin_attributions
from circuit.search.branches import Branches
from circuit.search.discretise import bisect_nodes, fewest
from circuit.search.evaluation import Judge
from circuit.search.parts import Parts

Baseline = Literal["attribution", "integrated", "edge attribution", "random"]
BASELINES: tuple[Baseline, ...] = ("attribution", "integrated", "edge attribution", "random")

PATH_STEPS = 8
"""Of integrated gradients, between all nodes at their means and none."""

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of a model's edges at which MIB measures faithfulness."""


class PartOrder(NamedTuple):
    """What each part is worth: nodes (N,) or edges (E,); the higher, the longer it stays."""

    judge: Judge
    parts: Parts
    worth: Tensor
    of_edges: bool

    def first_nodes(self, count: int) -> Tensor:
        """(N,) the nodes worth most."""
        best = self.worth.argsort(descending=True, stable=True)[:count]
        return torch.zeros_like(self.worth, dtype=torch.bool).index_fill(0, best, True)

    def first_edges(self, count: int) -> Tensor:
        """(N + E,) all nodes, and the edges worth most: along the others a node's mean passes."""
        edges = self.worth.argsort(descending=True, stable=True)[:count] + self.parts.n_nodes
        keep = torch.cat([self.parts.nodes, torch.zeros_like(self.worth, dtype=torch.bool)])
        return keep.index_fill(0, edges, True)


class KeptParts(NamedTuple):
    """A circuit as `Judge` takes it, and its size in edges."""

    nodes: Tensor
    edges: Edges | None
    n_edges: int


def ordered(judge: Judge, baseline: Baseline, seed: int = 0) -> PartOrder:
    """The order of a baseline.

    attribution: |gradient of the margin × (activation − mean)| of every prompt, summed over positions within the
    absolute value and averaged over prompts. integrated: the same with the gradient averaged along the path on which
    all nodes move from their means to their values. edge attribution: that of every edge, gradient × weight × (source −
    its mean). random: a permutation of the nodes.
    """
    everything = judge.everything()
    parts = Parts(judge.model, everything, edges=baseline == "edge attribution")
    if baseline == "edge attribution":
        keep = parts.everything()
        numbers = torch.arange(parts.n_nodes, len(keep), device=keep.device)
        return PartOrder(judge, parts, Branches(judge, parts).changes(keep, numbers).abs().mean(1), of_edges=True)
    if baseline == "random":
        generator = torch.Generator().manual_seed(seed)
        return of_nodes(judge, torch.rand(judge.index.total, generator=generator).to(judge.sides.device))
    steps = [1.0] if baseline == "attribution" else [(step + 0.5) / PATH_STEPS for step in range(PATH_STEPS)]
    path = [margin_attributions(judge, openness * everything.float()) for openness in steps]
    return of_nodes(judge, torch.stack(path).mean(0).abs().mean(1))


def of_nodes(judge: Judge, worth: Tensor) -> PartOrder:
    """An order of nodes (N,), such as the mask parameters of a search."""
    return PartOrder(judge, Parts(judge.model, judge.everything()), worth, of_edges=False)


def smallest_reaching(order: PartOrder, target: float) -> KeptParts | None:
    """The circuit of the fewest first parts that reaches a target loss; None where not all of them do."""
    judge, parts = order.judge, order.parts
    if not order.of_edges:
        nodes = bisect_nodes(judge, order.worth, target)
        return None if nodes is None else KeptParts(nodes, None, _edges_within(parts, nodes))

    def reaches(count: int) -> bool:
        keep = order.first_edges(count)
        return judge.calibrated(parts.nodes, parts.edges(keep))[0] <= target

    if not reaches(len(order.worth)):
        return None
    return _kept(order, fewest(reaches, 0, len(order.worth)))


def faithfulness(
    order: PartOrder, measure: Callable[[KeptParts], float], shares: Sequence[float] = SHARES
) -> dict[float, float]:
    """By share of the model's edges, the faithfulness of the circuit of that many edges or fewer of the first parts.

    Faithfulness (MIB) is (m(circuit) − m(nothing)) / (m(model) − m(nothing)) for a `measure` m such as the mean margin.
    None where the model does with all nodes ablated what it does: by embeddings or a bigram table alone.
    """
    total = len(order.parts.source)
    nothing = torch.zeros_like(order.parts.nodes)
    empty, whole = measure(KeptParts(nothing, None, 0)), measure(KeptParts(order.parts.nodes, None, total))
    if whole == empty:
        return {}
    found = {share: measure(_within(order, math.floor(share * total + 1e-6))) for share in shares}
    return {share: (value - empty) / (whole - empty) for share, value in found.items()}


def cpr(curve: Mapping[float, float]) -> float:
    """MIB's circuit performance ratio: the area under faithfulness, by trapezoids over shares of edges; higher is
    better."""
    return _area(curve)


def cmd(curve: Mapping[float, float]) -> float:
    """MIB's circuit-model distance: the area between faithfulness and 1; lower is better, 0 is best."""
    return _area({share: abs(1 - value) for share, value in curve.items()})


def _area(curve: Mapping[float, float]) -> float:
    points = sorted(curve.items())
    return sum((b - a) * (y + z) / 2 for (a, y), (b, z) in pairwise(points))


def _within(order: PartOrder, n_edges: int) -> KeptParts:
    """The circuit of as many of the first parts as have no more edges than that."""
    if order.of_edges:
        return _kept(order, n_edges)
    rank = order.worth.argsort(descending=True, stable=True).argsort()
    last = torch.maximum(rank[order.parts.source], rank[order.parts.target])  # with this node an edge is complete
    edges = torch.bincount(last, minlength=len(rank)).cumsum(0)
    nodes = order.first_nodes(int((edges <= n_edges).sum()))
    return KeptParts(nodes, None, _edges_within(order.parts, nodes))


def _kept(order: PartOrder, count: int) -> KeptParts:
    return KeptParts(order.parts.nodes, order.parts.edges(order.first_edges(count)), count)


def _edges_within(parts: Parts, nodes: Tensor) -> int:
    return int((nodes[parts.source] & nodes[parts.target]).sum())
