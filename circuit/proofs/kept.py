"""What a circuit keeps and what it does not, as the parts that proofs ablate or leave alone.

What a circuit does not keep are the other nodes and, of method edge, the weights between its nodes that are no edges.

Shapes: N nodes of a model in the order of `NodeIndex`, R weights between kept nodes that are no edges, U = N + R parts
of which those a circuit keeps are never ablated with the rest; K choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.ablated.batches import AnswerBatch
from circuit.ablated.calibration import Calibration
from circuit.ablated.compact import AblatedModel, Edges, Gates
from circuit.ablated.nodes import NodeIndex
from circuit.graph.record import Circuit, means_of
from circuit.search.parts import Parts
from sparse_model.model.transformer import SparseTransformer


class Ablated(NamedTuple):
    """Nodes (N,) that have their own values, and the edges between them; None: all."""

    nodes: Tensor
    edges: Edges | None


class CircuitParts:
    """A circuit's parts in its model, and what happens when others are ablated."""

    def __init__(self, model: SparseTransformer, circuit: Circuit) -> None:
        self.model, self.circuit, self.index = model, circuit, NodeIndex(model)
        self.means: Means = means_of(circuit, model.embedding.device)
        self.calibration = Calibration(circuit.scale, circuit.shift)
        self.nodes = self.index.flat(circuit.nodes)
        self.parts = Parts(model, self.nodes, edges=True)
        edges = circuit.kept_edges(self.nodes.device)
        self.is_edge = torch.ones_like(self.parts.source, dtype=torch.bool) if edges is None else self._among(edges)
        self.others = torch.cat([~self.nodes, ~self.is_edge]).nonzero().squeeze(1)  # (O,) numbers of what is not kept

    def _among(self, edges: Edges) -> Tensor:
        """(E,) which weights between the nodes are edges."""
        codes = [
            (pairs[:, 1] + self.index.first[block.source]) * self.index.total + pairs[:, 0] + self.index.first[target]
            for target, pairs in edges.items()
            for block in self.parts.blocks
            if block.target == target
        ]
        every = self.parts.source * self.index.total + self.parts.target
        return torch.isin(every, torch.cat(codes)) if codes else torch.zeros_like(every, dtype=torch.bool)

    def beside(self, alone: Tensor) -> Ablated:
        """The model in which all but the circuit and the others that are left `alone` (O,) is ablated."""
        open_ = torch.cat([self.nodes, self.is_edge]).index_fill(0, self.others[alone], True)
        nodes, edges = open_[: self.index.total], open_[self.index.total :]
        return Ablated(nodes, self._without(nodes, ~edges))

    def ablated(self) -> Ablated:
        """The model in which only the circuit is ablated: its nodes; of method edge its edges, which carry means, and
        those of its nodes that no edge of it touches."""
        if self.circuit.method != "edge":
            return Ablated(~self.nodes, None)
        touched = torch.zeros_like(self.nodes)
        for ends in (self.parts.source, self.parts.target):
            touched[ends[self.is_edge]] = True
        return Ablated(~(self.nodes & ~touched), self._without(~(self.nodes & ~touched), self.is_edge))

    def _without(self, nodes: Tensor, removed: Tensor) -> Edges | None:
        """Edges between nodes (N,) but for the `removed` (E,) of those between the circuit's."""
        if not bool(removed.any()):
            return None
        here = Parts(self.model, nodes, edges=True)
        gone = (self.parts.source * self.index.total + self.parts.target)[removed]
        left = ~torch.isin(here.source * self.index.total + here.target, gone)
        return here.edges(torch.cat([nodes, left]))

    @torch.no_grad()
    def margins(self, ablated: Ablated, batches: Sequence[AnswerBatch]) -> Tensor:
        """Margins (P,) of all prompts."""
        compact = AblatedModel(self.model, self.means, self.index.channels(ablated.nodes), ablated.edges)
        return torch.cat([compact.margins(batch) for batch in batches])

    def whole(self) -> AblatedModel:
        """The whole model, to be ablated by `gates`."""
        everything = torch.ones_like(self.nodes)
        return AblatedModel(self.model, self.means, self.index.channels(everything))

    def gates(self, whole: AblatedModel, alone: Tensor) -> Gates:
        """Gates of K choices `alone` (K, O): 1 where one of the others is left alone, 0 where it is ablated."""
        K, N = len(alone), self.index.total
        open_ = alone.new_ones(K, N + len(self.is_edge)).index_copy(1, self.others, alone)
        nodes = self.index.split(open_[:, :N])
        edges: dict[str, Tensor] = {}
        for block, between in zip(self.parts.blocks, whole.projections(), strict=True):
            numbers = torch.arange(block.start, block.stop, device=alone.device)
            numbers = numbers[~self.is_edge[block.start : block.stop]]
            if len(numbers):
                rows = self.parts.target[numbers] - self.index.first[block.target]
                columns = self.parts.source[numbers] - self.index.first[block.source]
                flat = alone.new_ones(K, between.weight.numel())
                flat = flat.index_copy(1, rows * between.weight.shape[1] + columns, open_[:, N + numbers])
                edges[block.target] = flat.view(K, *between.weight.shape)
        return Gates(nodes, edges)
