"""What a circuit can be cut down by: its nodes, and the edges between them. Candidates are judged many at a time.

Shapes: N nodes of a model in the order of `NodeIndex`, E edges between them; `keep` is boolean (N + E,), nodes first;
M candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit.batches import AnswerBatch
from circuit.calibration import Calibration, calibrated_loss, task_loss
from circuit.compact import AblatedModel, Edges, Gates, edges_into
from circuit.edges import Block, edge_ends
from circuit.evaluation import Judge

POSITIONS = 8192
"""Positions of all candidates that go through a forward pass together: what is left of a model is so small that
calling its operations costs as much as carrying them out."""


class Parts:
    """The parts of one circuit. A node takes its edges with it; an edge alone can go only if `edges` says so."""

    def __init__(self, judge: Judge, nodes: Tensor, edges: bool = False) -> None:
        """The nodes (N,) of a circuit, and all weights between them as its edges."""
        self.judge, self.single_edges, self.nodes = judge, edges, nodes
        self.first, self.n_nodes = judge.index.first, judge.index.total
        # (E,) the nodes an edge comes from and goes to
        self.source, self.target, self.blocks = edge_ends(judge.model, judge.index.channels(nodes), self.first)

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

    def calibrated(self, keep: Tensor) -> tuple[float, Calibration]:
        """Task loss in nats after calibration, and the calibration."""
        return self.judge.calibrated(keep[: self.n_nodes], self.edges(keep))

    def losses(self, keep: Tensor, candidates: Tensor) -> list[float]:
        """Calibrated losses of candidates (M, N + E), each of them a part of `keep`."""
        found = [calibrated_loss(margins, self.judge.sides)[0] for margins in self.margins(keep, candidates)]
        self.judge.watch.judged(int(keep[: self.n_nodes].sum()), min(found))
        return found

    def margins(self, keep: Tensor, candidates: Tensor) -> Tensor:
        """Margins (M, prompts) of candidates (M, N + E), each of them a part of `keep`."""
        compact, margins = self._compact(keep), []
        with torch.no_grad():
            for batch in self.judge.batches:
                at_once = max(1, POSITIONS // batch.tokens.numel())
                parts = [self._margins(compact, batch, some) for some in torch.split(candidates.float(), at_once)]
                margins.append(torch.cat(parts))
        return torch.cat(margins, 1)

    def harm(self, keep: Tensor, calibration: Calibration) -> Tensor:
        """First-order estimate (N + E,) of the rise in loss when one more part is removed; 0 for those not kept."""
        compact, values = self._compact(keep), keep.float().requires_grad_()
        for batch in self.judge.batches:
            margins = compact.margins(batch, self._gates(compact, values))
            loss = task_loss(margins, batch.sides, calibration)
            (loss * len(batch.sides) / len(self.judge.sides)).backward()  # type: ignore[no-untyped-call]
        assert values.grad is not None
        return -values.grad * keep

    def _compact(self, keep: Tensor) -> AblatedModel:
        """With all weights between the kept nodes: gates say which of them are edges."""
        return AblatedModel(self.judge.model, self.judge.means, self.judge.index.channels(keep[: self.n_nodes]))

    def _margins(self, compact: AblatedModel, batch: AnswerBatch, candidates: Tensor) -> Tensor:
        """(M, B) of candidates (M, N + E)."""
        M = len(candidates)
        together = AnswerBatch(*(field.repeat(M, *(1,) * (field.dim() - 1)) for field in batch))
        return compact.margins(together, self._gates(compact, candidates)).view(M, -1)

    def _gates(self, compact: AblatedModel, values: Tensor) -> Gates:
        """Gates of values (N + E,) or (M, N + E)."""
        gates = self.judge.index.split(values[..., : self.n_nodes])
        if not self.single_edges:
            return gates
        # weights from or to a node that is not in the circuit are left as they are
        both = (values[..., self.source] > 0) & (values[..., self.target] > 0)
        edges = torch.where(both, values[..., self.n_nodes :], 1)
        for block, between in zip(self.blocks, compact.projections(), strict=True):
            target, source = between.weight.nonzero().unbind(1)
            number = self._number(block, between.inputs[source], between.outputs[target])
            flat = values.new_ones(*values.shape[:-1], between.weight.numel())
            flat = flat.index_copy(-1, target * between.weight.shape[1] + source, edges[..., number])
            gates[edges_into(block.target)] = flat.view(*values.shape[:-1], *between.weight.shape)
        return gates

    def _number(self, block: Block, source: Tensor, target: Tensor) -> Tensor:
        """Numbers of edges of a block, given as channels of its two sites."""
        width = self.judge.index.widths[block.source]
        part = slice(block.start, block.stop)
        keys = (self.target[part] - self.first[block.target]) * width + self.source[part] - self.first[block.source]
        return block.start + torch.searchsorted(keys, target * width + source)
