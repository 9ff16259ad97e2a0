"""What a circuit can be cut down by: its nodes, and the edges between them. Candidates are judged many at a time.

Shapes: N nodes of a model in the order of `NodeIndex`, E edges between them; `keep` is boolean (N + E,), nodes first;
M candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuit.ablated.batches import AnswerBatch
from circuit.ablated.calibration import Calibration
from circuit.ablated.compact import AblatedModel, Edges, Gates, Stream, edges_into, stage_of
from circuit.graph.edges import EdgeBlock, edge_ends
from circuit.search.evaluation import Judge

POSITIONS_TOGETHER = 8192
"""Positions of all candidates that go through a forward pass together: what is left of a model is so small that
calling its operations costs as much as carrying them out."""

CELLS = 2**26
"""Gates of all prompts that are differentiated together."""

STREAM_BYTES = 2**30
"""Memory for residual streams; where it is too little, streams before every second sublayer are kept, and so on."""


@dataclass(frozen=True)
class Trunk:
    """What the candidates that a circuit is cut down to share with it: all that comes before what they lack.

    `keep` (N + E,) is the circuit, `compact` a model cut down to it or to a larger one, `streams` for every batch the
    residual streams of `keep` by sublayer, `margins` (prompts,) its margins.
    """

    keep: Tensor
    compact: AblatedModel
    batches: Sequence[AnswerBatch]
    streams: list[dict[int, Stream]]
    margins: Tensor


class Parts:
    """The parts of one circuit. A node takes its edges with it; an edge alone can go only if `edges` says so."""

    def __init__(self, judge: Judge, nodes: Tensor, edges: bool = False) -> None:
        """The nodes (N,) of a circuit, and all weights between them as its edges."""
        self.judge, self.single_edges, self.nodes = judge, edges, nodes
        self.first, self.n_nodes = judge.index.first, judge.index.total
        # (E,) the nodes an edge comes from and goes to
        self.source, self.target, self.blocks = edge_ends(judge.model, judge.index.channels(nodes), self.first)
        config, widths = judge.model.config, judge.index.widths
        by_site = torch.tensor([stage_of(site, config) for site in widths], device=judge.sides.device)
        by_node = by_site.repeat_interleave(torch.tensor(list(widths.values()), device=judge.sides.device))
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

    def calibrated(self, keep: Tensor) -> tuple[float, Calibration]:
        """Task loss in nats after calibration, and the calibration."""
        return self.judge.calibrated(keep[: self.n_nodes], self.edges(keep))

    @torch.no_grad()
    def trunk(self, keep: Tensor, batches: Sequence[AnswerBatch]) -> Trunk:
        """That of a circuit, for the prompts of the given batches."""
        compact = self._compact(keep)
        streams = [{0: compact.start(batch)} for batch in batches]
        return self._grown(Trunk(keep, compact, batches, streams, keep.new_empty(0)), 0)

    @torch.no_grad()
    def branch(self, trunk: Trunk, candidate: Tensor) -> Trunk:
        """That of a smaller circuit (N + E,), from where the two part on."""
        stage = int(self._parting(trunk, candidate[None])[0])
        streams = [{at: stream for at, stream in kept.items() if at <= stage} for kept in trunk.streams]
        return self._grown(Trunk(candidate, trunk.compact, trunk.batches, streams, trunk.margins), stage)

    @torch.no_grad()
    def margins(self, trunk: Trunk, candidates: Tensor) -> Tensor:
        """Margins (M, prompts) of candidates (M, N + E), each of them a part of the trunk's circuit."""
        found = trunk.margins.new_empty(len(candidates), len(trunk.margins))
        stages = self._parting(trunk, candidates)
        for stage in sorted(set(stages.tolist())):
            rows = (stages == stage).nonzero().squeeze(1)
            found[rows] = self._margins(trunk, candidates[rows].float(), stage)
        return found

    def changes(self, keep: Tensor, removed: Tensor) -> Tensor:
        """First-order estimates (n, prompts) of how every margin changes when one of the kept parts `removed` (n,),
        given by their numbers, is removed."""
        compact, values = self._compact(keep), keep.float()
        cells = len(values) + sum(between.weight.numel() for between in compact.projections() if self.single_edges)
        found = []
        for batch in self.judge.batches:
            for rows in torch.split(torch.arange(len(batch.sides)), max(1, CELLS // cells)):
                some = AnswerBatch(*(field[rows] for field in batch))
                gates = values.repeat(len(rows), 1).requires_grad_()
                margins = compact.margins(some, self._gates(compact, gates))
                (gradient,) = torch.autograd.grad(margins.sum(), gates)  # of each prompt its own
                found.append(-gradient[:, removed])
        return torch.cat(found).T

    def _compact(self, keep: Tensor) -> AblatedModel:
        """With all weights between the kept nodes: gates say which of them are edges."""
        return AblatedModel(self.judge.model, self.judge.means, self.judge.index.channels(keep[: self.n_nodes]))

    def _parting(self, trunk: Trunk, candidates: Tensor) -> Tensor:
        """(M,) the first sublayer in which candidates differ from the trunk's circuit."""
        last = torch.full_like(self.stages, trunk.compact.stages)
        return torch.where(trunk.keep & ~candidates, self.stages, last).amin(1)

    def _grown(self, trunk: Trunk, stage: int) -> Trunk:
        """The trunk from a sublayer on, where it has the streams up to there."""
        gates, streams, margins = self._gates(trunk.compact, trunk.keep.float()), [], []
        every = self._every(trunk.batches)
        for batch, shared in zip(trunk.batches, trunk.streams, strict=True):
            kept = dict(shared)
            start = max(kept)
            stream = kept[start]
            for at in range(start, trunk.compact.stages):
                stream = trunk.compact.sublayer(at, stream, batch, gates)
                if (at + 1) % every == 0:
                    kept[at + 1] = stream
            streams.append(kept)
            margins.append(trunk.compact.end(stream, batch, gates))
        return replace(trunk, streams=streams, margins=torch.cat(margins))

    def _every(self, batches: Sequence[AnswerBatch]) -> int:
        """Of how many sublayers one has its stream kept."""
        config = self.judge.model.config
        one = sum(batch.tokens.numel() for batch in batches) * config.d_model * 4
        return max(1, math.ceil(one * 2 * config.n_layer / STREAM_BYTES))

    def _margins(self, trunk: Trunk, candidates: Tensor, stage: int) -> Tensor:
        """(M, prompts) of candidates (M, N + E) that are like the trunk's circuit before a sublayer."""
        margins = []
        for batch, kept in zip(trunk.batches, trunk.streams, strict=True):
            start = max(at for at in kept if at <= stage)
            at_once = max(1, POSITIONS_TOGETHER // kept[start].x.shape[:-1].numel())
            parts = [
                self._together(trunk.compact, start, kept[start], batch, some)
                for some in torch.split(candidates, at_once)
            ]
            margins.append(torch.cat(parts))
        return torch.cat(margins, 1)

    def _together(
        self, compact: AblatedModel, stage: int, stream: Stream, batch: AnswerBatch, candidates: Tensor
    ) -> Tensor:
        """(M, B) of candidates (M, N + E), from the stream that they share before a sublayer on."""
        M = len(candidates)
        together = AnswerBatch(*(field.repeat(M, *(1,) * (field.dim() - 1)) for field in batch))
        gates, stream = self._gates(compact, candidates), stream.repeated(M)
        for at in range(stage, compact.stages):
            stream = compact.sublayer(at, stream, together, gates)
        return compact.end(stream, together, gates).view(M, -1)

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

    def _number(self, block: EdgeBlock, source: Tensor, target: Tensor) -> Tensor:
        """Numbers of edges of a block, given as channels of its two sites."""
        width = self.judge.index.widths[block.source]
        part = slice(block.start, block.stop)
        keys = (self.target[part] - self.first[block.target]) * width + self.source[part] - self.first[block.source]
        return block.start + torch.searchsorted(keys, target * width + source)
