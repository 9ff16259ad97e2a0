"""Many circuits that are parts of one, judged together: what they share is computed once.

A *trunk* is a circuit with the residual streams of every batch; a candidate that lacks some of its parts *branches off*
at the first sublayer where one of them has its effect, and only what comes after is computed for it.

Shapes: N nodes of a model in the order of `NodeIndex`, E edges between those of the circuit; `keep` is boolean
(N + E,), nodes first; M candidates; P prompts, of all worlds of a judge; B those of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuit.ablated.batches import AnswerBatch
from circuit.ablated.calibration import Calibration
from circuit.ablated.compact import AblatedModel, Gates, Stream
from circuit.search.evaluation import Judge, World, every_prompt
from circuit.search.parts import Parts

POSITIONS_TOGETHER = 8192
"""Positions of all candidates that go through a forward pass together: what is left of a model is so small that
calling its operations costs as much as carrying them out."""

CELLS = 2**26
"""Gates of all prompts that are differentiated together."""

STREAM_BYTES = 2**30
"""Memory for residual streams; where it is too little, streams before every second sublayer are kept, and so on."""


@dataclass(frozen=True)
class Growth:
    """A trunk in one world: a model cut down to it or to a larger circuit, for every batch the residual streams by
    sublayer, and the margins of the world's prompts."""

    world: World
    compact: AblatedModel
    streams: list[dict[int, Stream]]
    margins: Tensor


@dataclass(frozen=True)
class Trunk:
    """A circuit `keep` (N + E,) and its margins (P,), with what its parts share in every world."""

    keep: Tensor
    growths: Sequence[Growth]

    @property
    def margins(self) -> Tensor:
        return torch.cat([growth.margins for growth in self.growths])


class Branches:
    """Judges circuits by their `parts`."""

    def __init__(self, judge: Judge, parts: Parts) -> None:
        self.judge, self.parts = judge, parts
        assert len(judge.worlds) == 1 or not parts.single_edges, "edges are searched in one world"
        self.looks = [judge.among(judge.worlds[:n]) for n in _looks(len(judge.worlds))]

    def calibrated(self, keep: Tensor) -> tuple[float, Calibration]:
        """Task loss in nats after calibration, and the calibration."""
        return self.judge.calibrated(keep[: self.parts.n_nodes], self.parts.edges(keep))

    @torch.no_grad()
    def trunk(self, keep: Tensor) -> Trunk:
        """That of a circuit."""
        growths = []
        for world in self.judge.worlds:
            compact = self._compact(keep, world)
            growth = Growth(world, compact, [{0: compact.start(batch)} for batch in world.batches], keep.new_empty(0))
            growths.append(self._grown(growth, keep, 0))
        return Trunk(keep, growths)

    @torch.no_grad()
    def branch(self, trunk: Trunk, candidate: Tensor, target: float) -> Trunk | None:
        """That of a smaller circuit (N + E,), from where the two part on; None where it misses the target loss."""
        growths: list[Growth] = []
        for look in self.looks:
            growths += [self._branch(trunk.keep, growth, candidate) for growth in self._next(trunk, growths, look)]
            if look.fitted(torch.cat([growth.margins for growth in growths]))[0] > target:
                return None
        return Trunk(candidate, growths)

    @torch.no_grad()
    def losses(self, trunk: Trunk, candidates: Tensor, target: float) -> Tensor:
        """(M,) calibrated losses of candidates (M, N + E), each of them a part of the trunk's circuit. Of those that
        miss the target loss in some of the worlds, the loss there: no other world is looked at."""
        losses = torch.zeros(len(candidates), dtype=torch.float64)
        margins = trunk.margins.new_empty(len(candidates), 0)
        seen: list[Growth] = []
        for look in self.looks:
            left = (losses <= target).nonzero().squeeze(1)
            growths = self._next(trunk, seen, look)
            more = [self._in_world(trunk.keep, growth, candidates[left]) for growth in growths]
            margins, seen = torch.cat([margins, *more], 1), [*seen, *growths]
            losses[left] = look.losses(margins)
            margins = margins[losses[left] <= target]
        return losses

    def _next(self, trunk: Trunk, seen: Sequence[Growth], look: Judge) -> Sequence[Growth]:
        return trunk.growths[len(seen) : len(look.worlds)]

    def _branch(self, keep: Tensor, growth: Growth, candidate: Tensor) -> Growth:
        stage = int(self._parting(keep, growth, candidate[None])[0])
        if stage > growth.compact.stages:
            return growth
        kept = [{at: x for at, x in streams.items() if at <= stage} for streams in growth.streams]
        return self._grown(replace(growth, streams=kept), candidate, stage)

    def sampled(self, trunk: Trunk) -> Tensor:
        """(P',) its margins of the prompts of `Judge.sample`."""
        if self.judge.sample is self.judge:
            return trunk.margins
        steps = [every_prompt(world) for world in self.judge.worlds for _ in world.batches]
        parts = torch.split(trunk.margins, [len(batch.sides) for w in self.judge.worlds for batch in w.batches])
        return torch.cat([part[::step] for part, step in zip(parts, steps, strict=True)])

    def changes(self, keep: Tensor, removed: Tensor) -> Tensor:
        """First-order estimates (n, P') of how every margin of `Judge.sample` changes when one of the kept parts
        `removed` (n,), given by their numbers, is removed."""
        return torch.cat([self._changes(keep, removed, world) for world in self.judge.sample.worlds]).T

    def _changes(self, keep: Tensor, removed: Tensor, world: World) -> Tensor:
        """(prompts, n)."""
        compact, values = self._compact(keep, world), keep.float()
        edges = [between.weight.numel() for between in compact.projections() if self.parts.single_edges]
        cells, found = len(values) + sum(edges), []
        for batch in world.batches:
            for rows in torch.split(torch.arange(len(batch.sides)), max(1, CELLS // cells)):
                some = AnswerBatch(*(field[rows] for field in batch))
                gates = values.repeat(len(rows), 1).requires_grad_()
                margins = compact.margins(some, self._gates(compact, gates, world))
                (gradient,) = torch.autograd.grad(margins.sum(), gates)  # of each prompt its own
                found.append(-gradient[:, removed])
        return torch.cat(found)

    def _compact(self, keep: Tensor, world: World) -> AblatedModel:
        """With all weights between the kept nodes: gates say which of them are edges."""
        nodes = keep[: self.parts.n_nodes] | world.rest
        return AblatedModel(self.judge.model, self.judge.means, self.judge.index.channels(nodes))

    def _gates(self, compact: AblatedModel, values: Tensor, world: World) -> Gates:
        return self.parts.gates(compact, values, world.rest)

    def _parting(self, keep: Tensor, growth: Growth, candidates: Tensor) -> Tensor:
        """(M,) the first sublayer in which candidates differ from a circuit, final.in being the last; one more where
        they do not."""
        last = torch.full_like(self.parts.stages, growth.compact.stages + 1)
        gone = keep & ~candidates
        gone[:, : self.parts.n_nodes] &= ~growth.world.rest
        return torch.where(gone, self.parts.stages, last).amin(1)

    def _grown(self, growth: Growth, keep: Tensor, stage: int) -> Growth:
        """From a sublayer on, where the streams up to there are given."""
        compact, world = growth.compact, growth.world
        gates, streams, margins = self._gates(compact, keep.float(), world), [], []
        every = self._every()
        for batch, shared in zip(world.batches, growth.streams, strict=True):
            kept = dict(shared)
            start = max(kept)
            stream = kept[start]
            for at in range(start, compact.stages):
                stream = compact.sublayer(at, stream, batch, gates)
                if (at + 1) % every == 0:
                    kept[at + 1] = stream
            streams.append(kept)
            margins.append(compact.end(stream, batch, gates))
        return replace(growth, streams=streams, margins=torch.cat(margins))

    def _every(self) -> int:
        """Of how many sublayers one has its stream kept."""
        config = self.judge.model.config
        tokens = sum(batch.tokens.numel() for world in self.judge.worlds for batch in world.batches)
        return max(1, math.ceil(tokens * config.d_model * 4 * 2 * config.n_layer / STREAM_BYTES))

    def _in_world(self, keep: Tensor, growth: Growth, candidates: Tensor) -> Tensor:
        """(M, prompts of a world)."""
        found = growth.margins.repeat(len(candidates), 1)
        stages = self._parting(keep, growth, candidates)
        for stage in sorted(set(stages.tolist()) - {growth.compact.stages + 1}):
            rows = (stages == stage).nonzero().squeeze(1)
            found[rows] = self._from_stage(growth, candidates[rows].float(), stage)
        return found

    def _from_stage(self, growth: Growth, candidates: Tensor, stage: int) -> Tensor:
        """(M, prompts of a world) of candidates (M, N + E) that are like the trunk's circuit before a sublayer."""
        margins = []
        for batch, kept in zip(growth.world.batches, growth.streams, strict=True):
            start = max(at for at in kept if at <= stage)
            at_once = max(1, POSITIONS_TOGETHER // kept[start].x.shape[:-1].numel())
            parts = [
                self._together(growth, start, kept[start], batch, some) for some in torch.split(candidates, at_once)
            ]
            margins.append(torch.cat(parts))
        return torch.cat(margins, 1)

    def _together(self, growth: Growth, stage: int, stream: Stream, batch: AnswerBatch, candidates: Tensor) -> Tensor:
        """(M, B) of candidates (M, N + E), from the stream that they share before a sublayer on."""
        M, compact = len(candidates), growth.compact
        together = AnswerBatch(*(field.repeat(M, *(1,) * (field.dim() - 1)) for field in batch))
        gates, stream = self._gates(compact, candidates, growth.world), stream.repeated(M)
        for at in range(stage, compact.stages):
            stream = compact.sublayer(at, stream, together, gates)
        return compact.end(stream, together, gates).view(M, -1)


def _looks(worlds: int) -> list[int]:
    """After how many worlds a candidate that misses the target there is given up: the first ones take the least."""
    return sorted({1, math.ceil(worlds / 3), worlds})
