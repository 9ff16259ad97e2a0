"""What a circuit can be cut down by: its nodes, and the edges between them.

Shapes: N nodes of a model in the order of `NodeIndex`, E edges between them; `keep` is boolean (N + E,), nodes first;
M candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit.ablated.compact import AblatedModel, Edges, Gates, stage_of
from circuit.ablated.nodes import NodeIndex
from circuit.graph.edges import EdgeBlock, edge_ends
from sparse_model.model.transformer import SparseTransformer


class Parts:
    """The parts of one circuit. A node takes its edges with it; an edge alone can go only if `edges` says so."""

    def __init__(self, model: SparseTransformer, nodes: Tensor, edges: bool = False) -> None:
        """The nodes (N,) of a circuit, and all weights between them as its edges."""
        self.index = index = NodeIndex(model)
        self.single_edges, self.nodes = edges, nodes
        self.first, self.n_nodes = index.first, index.total
        # (E,) the nodes an edge comes from and goes to
        self.source, self.target, self.blocks = edge_ends(model, index.channels(nodes), self.first)
        by_site = torch.tensor([stage_of(site, model.config) for site in index.widths], device=nodes.device)
        by_node = by_site.repeat_interleave(torch.tensor(list(index.widths.values()), device=nodes.device))
        self.stages = torch.cat([by_node, by_node[self.target]])  # (N + E,) sublayers where parts have their effect

    def everything(self) -> Tensor:
        """`keep` of the whole circuit."""
        return self.closed(torch.cat([self.nodes, torch.ones_like(self.source, dtype=torch.bool)]))

    def closed(self, keep: Tensor) -> Tensor:
        """`keep` (..., N + E) without the edges that have lost a node."""
        nodes, edges = keep[..., : self.n_nodes], keep[..., self.n_nodes :]
        return torch.cat([nodes, edges & nodes[..., self.source] & nodes[..., self.target]], -1)

    def removable(self, keep: Tensor) -> Tensor:
        """(N + E,) what may be removed next."""
        return keep if self.single_edges else keep & (torch.arange(len(keep), device=keep.device) < self.n_nodes)

    def saved(self, keep: Tensor) -> Tensor:
        """(N + E,) by how many edges a part's removal shrinks the circuit; an edge by one."""
        kept = keep[self.n_nodes :]
        ends = torch.cat([self.source[kept], self.target[kept]])
        return torch.cat([torch.bincount(ends, minlength=self.n_nodes), kept.long()])

    def edges(self, keep: Tensor) -> Edges | None:
        """Kept edges by target site; None where nodes alone say which they are."""
        if not self.single_edges:
            return None
        kept = keep[self.n_nodes :]
        found: dict[str, Tensor] = {}
        for block in self.blocks:
            part = slice(block.start, block.stop)
            channels = (self.target[part] - self.first[block.target], self.source[part] - self.first[block.source])
            found[block.target] = torch.stack(channels, 1)[kept[part]]
        return found

    def gates(self, compact: AblatedModel, values: Tensor, rest: Tensor | None = None) -> Gates:
        """Gates in a cut down model of values (N + E,) or (M, N + E); those of the nodes `rest` (N,) are open."""
        nodes = values[..., : self.n_nodes]
        by_site = self.index.split(nodes if rest is None else torch.where(rest, 1.0, nodes))
        if not self.single_edges:
            return Gates(by_site)
        # weights from or to a node that is not in the circuit are left as they are
        both = (values[..., self.source] > 0) & (values[..., self.target] > 0)
        edges = torch.where(both, values[..., self.n_nodes :], 1)
        found = {}
        for block, between in zip(self.blocks, compact.projections(), strict=True):
            target, source = between.weight.nonzero().unbind(1)
            number = self._number(block, between.inputs[source], between.outputs[target])
            flat = values.new_ones(*values.shape[:-1], between.weight.numel())
            flat = flat.index_copy(-1, target * between.weight.shape[1] + source, edges[..., number])
            found[block.target] = flat.view(*values.shape[:-1], *between.weight.shape)
        return Gates(by_site, found)

    def _number(self, block: EdgeBlock, source: Tensor, target: Tensor) -> Tensor:
        """Numbers of edges of a block, given as channels of its two sites."""
        width = self.index.widths[block.source]
        part = slice(block.start, block.stop)
        keys = (self.target[part] - self.first[block.target]) * width + self.source[part] - self.first[block.source]
        return block.start + torch.searchsorted(keys, target * width + source)
