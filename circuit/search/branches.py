"""Many circuits that are parts of one, judged together: what they share is computed once.

A *trunk* is a circuit with the residual streams of every batch; a candidate that lacks some of its parts *branches off*
at the first sublayer where one of them has its effect, and only what comes after is computed for it.

Shapes: N nodes of a model in the order of `NodeIndex`, E edges between those of the circuit; `keep` is boolean
(N + E,), nodes first; M candidates; P prompts; B those of a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuit.ablated.batches import AnswerBatch
from circuit.ablated.calibration import Calibration
from circuit.ablated.compact import AblatedModel, Stream
from circuit.search.evaluation import Judge
from circuit.search.parts import Parts

POSITIONS_TOGETHER = 8192
"""Positions of all candidates that go through a forward pass together: what is left of a model is so small that
calling its operations costs as much as carrying them out."""

CELLS = 2**26
"""Gates of all prompts that are differentiated together."""

STREAM_BYTES = 2**30
"""Memory for residual streams; where it is too little, streams before every second sublayer are kept, and so on."""


@dataclass(frozen=True)
class Trunk:
    """A circuit `keep` (N + E,): a model cut down to it or to a larger one, for every batch the residual streams by
    sublayer, and the margins of all prompts."""

    keep: Tensor
    compact: AblatedModel
    streams: list[dict[int, Stream]]
    margins: Tensor


class Branches:
    """Judges circuits by their `parts`."""

    def __init__(self, judge: Judge, parts: Parts) -> None:
        self.judge, self.parts = judge, parts

    def calibrated(self, keep: Tensor) -> tuple[float, Calibration]:
        """Task loss in nats after calibration, and the calibration."""
        return self.judge.calibrated(keep[: self.parts.n_nodes], self.parts.edges(keep))

    @torch.no_grad()
    def trunk(self, keep: Tensor) -> Trunk:
        """That of a circuit."""
        compact = self._compact(keep)
        streams = [{0: compact.start(batch)} for batch in self.judge.batches]
        return self._grow(Trunk(keep, compact, streams, keep.new_empty(0)), 0)

    @torch.no_grad()
    def branch(self, trunk: Trunk, candidate: Tensor) -> Trunk:
        """That of a smaller circuit (N + E,), from where the two part on."""
        stage = int(self._parting(trunk, candidate[None])[0])
        if stage > trunk.compact.stages:
            return replace(trunk, keep=candidate)
        kept = [{at: x for at, x in streams.items() if at <= stage} for streams in trunk.streams]
        return self._grow(replace(trunk, keep=candidate, streams=kept), stage)

    @torch.no_grad()
    def losses(self, trunk: Trunk, candidates: Tensor) -> Tensor:
        """(M,) calibrated losses of candidates (M, N + E), each of them a part of the trunk's circuit."""
        margins = trunk.margins.repeat(len(candidates), 1)
        stages = self._parting(trunk, candidates)
        for stage in sorted(set(stages.tolist()) - {trunk.compact.stages + 1}):
            rows = (stages == stage).nonzero().squeeze(1)
            margins[rows] = self._from_stage(trunk, candidates[rows].float(), stage)
        return self.judge.losses(margins)

    def changes(self, keep: Tensor, removed: Tensor) -> Tensor:
        """First-order estimates (n, P) of how every margin changes when one of the kept parts `removed` (n,), given by
        their numbers, is removed."""
        compact, values = self._compact(keep), keep.float()
        edges = [between.weight.numel() for between in compact.projections() if self.parts.single_edges]
        cells, found = len(values) + sum(edges), []
        for batch in self.judge.batches:
            for rows in torch.split(torch.arange(len(batch.sides)), max(1, CELLS // cells)):
                some = AnswerBatch(*(field[rows] for field in batch))
                gates = values.repeat(len(rows), 1).requires_grad_()
                margins = compact.margins(some, self.parts.gates(compact, gates))
                (gradient,) = torch.autograd.grad(margins.sum(), gates)  # of each prompt its own
                found.append(-gradient[:, removed])
        return torch.cat(found).T

    def _compact(self, keep: Tensor) -> AblatedModel:
        """With all weights between the kept nodes: gates say which of them are edges."""
        return AblatedModel(self.judge.model, self.judge.means, self.judge.index.channels(keep[: self.parts.n_nodes]))

    def _parting(self, trunk: Trunk, candidates: Tensor) -> Tensor:
        """(M,) the first sublayer in which candidates differ from a trunk's circuit, final.in being the last; one more
        where they do not."""
        last = torch.full_like(self.parts.stages, trunk.compact.stages + 1)
        return torch.where(trunk.keep & ~candidates, self.parts.stages, last).amin(1)

    def _grow(self, trunk: Trunk, stage: int) -> Trunk:
        """From a sublayer on, where the streams up to there are given."""
        compact, gates = trunk.compact, self.parts.gates(trunk.compact, trunk.keep.float())
        streams, margins, every = [], [], self._every()
        for batch, shared in zip(self.judge.batches, trunk.streams, strict=True):
            kept = dict(shared)
            start = max(kept)
            stream = kept[start]
            for at in range(start, compact.stages):
                stream = compact.sublayer(at, stream, batch, gates)
                if (at + 1) % every == 0:
                    kept[at + 1] = stream
            streams.append(kept)
            margins.append(compact.end(stream, batch, gates))
        return replace(trunk, streams=streams, margins=torch.cat(margins))

    def _every(self) -> int:
        """Of how many sublayers one has its stream kept."""
        config = self.judge.model.config
        tokens = sum(batch.tokens.numel() for batch in self.judge.batches)
        return max(1, math.ceil(tokens * config.d_model * 4 * 2 * config.n_layer / STREAM_BYTES))

    def _from_stage(self, trunk: Trunk, candidates: Tensor, stage: int) -> Tensor:
        """(M, P) of candidates (M, N + E) that are like the trunk's circuit before a sublayer."""
        margins = []
        for batch, kept in zip(self.judge.batches, trunk.streams, strict=True):
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
        gates, stream = self.parts.gates(compact, candidates), stream.repeated(M)
        for at in range(stage, compact.stages):
            stream = compact.sublayer(at, stream, together, gates)
        return compact.end(stream, together, gates).view(M, -1)
