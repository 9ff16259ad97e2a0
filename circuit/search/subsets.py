"""Searching for circuits that hold whatever part of the rest is ablated (METHOD 11).

Ablating all other nodes at once is a loophole: among thousands of nodes held at their means a search finds sets that
matter but cancel each other. Here a circuit has to do its task with all other nodes ablated, with none, and with any
random subset of them.

Subsets are too many to look at the same ones twice: what a circuit may lose in a sample of them, greedy removal takes,
and other subsets pay for it. So masks are learned in another subset for every pair and step (`circuit.search.masks`),
and what is spared of the learned circuit is decided on fresh ones: what nodes are worth is averaged over all subsets
seen so far, and every removal is checked in subsets that had no part in choosing it.

Shapes: N nodes of a model in the order of `NodeIndex`, B prompts of a batch, P of a draw, n nodes that may go.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit.ablated.batches import AnswerBatch, pair_batch
from circuit.ablated.calibration import Calibration, calibrate, softened, task_loss
from circuit.ablated.compact import AblatedModel, Gates
from circuit.search.discretise import halved
from circuit.search.evaluation import Judge
from circuit.search.parts import Parts

DRAWN_PROBABILITIES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)
"""With which each other node is ablated: each for as many pairs of a draw."""

DRAWN_PAIRS = 72
"""Pairs of a draw, each beside a subset of its own, and"""

TOGETHER = 12
"""how many of them go through the model together, of about the same length."""

MEAN = 0.7
"""Share of the target that the mean loss over subsets may be after a removal: a circuit at the target on average is
far above it in single subsets."""

TAIL = 5.0
"""Times the target that the mean loss of the worst tenth of pairs may be, each beside one subset."""

LOUDER = 1.5
"""Times the scale of the learned circuit that one found inside it may have."""

DRAWN_ROUNDS = 40
"""Draws at the most by which nodes are removed,"""

EMPTY_ROUNDS = 3
"""and how many of them may remove nothing."""

SHARE_OF_A_ROUND = 0.25
"""Share of a circuit's nodes that may go in one round."""

SINGLE_TRIES = 4
"""How many single nodes at the front of the queue may prove needed in a round before it is given up: those without
which the target is missed with all others ablated are not counted."""

KEPT = 0.7
"""Of what earlier draws said of a node's worth, in every round."""

SOFTER = torch.tensor([0.75**i for i in range(16)], dtype=torch.float64)
"""Times the best calibration that one for subsets may be."""

ENOUGH = 0.8
"""Share of its bounds at which a loss is low enough for a softer calibration: what a large scale gains in the subsets
seen it may lose in others."""


class Beside(NamedTuple):
    """Batches of pairs, the nodes (B, N) that each prompt has its own values of, kept or not, and the `sides` (P,)."""

    batches: list[AnswerBatch]
    rest: list[Tensor]
    sides: Tensor

    def lead(self, margins: Tensor, calibration: Calibration) -> Tensor:
        """(P,) margins, calibrated."""
        return calibration.scale * margins + calibration.shift * self.sides


class Subsets:
    """What circuits make of pairs that each are beside a random subset of all other nodes, drawn anew when asked."""

    def __init__(self, judge: Judge, seed: int, target: float) -> None:
        self.judge, self.target = judge, target
        self.generator, self.drawn = torch.Generator().manual_seed(seed), 0
        self.max_scale = judge.max_scale
        self.whole = AblatedModel(judge.model, judge.means, judge.index.channels(judge.everything()))
        self.first = self.draw()

    def draw(self, pairs: int = DRAWN_PAIRS) -> Beside:
        """The next pairs of the data, round and round, each beside a fresh subset."""
        data, device = self.judge.data, self.judge.sides.device
        rows = (torch.arange(pairs) + self.drawn) % data.n_pairs
        self.drawn += pairs
        rows = rows[data.length.view(-1, 2).amax(1)[rows].argsort(stable=True)]
        ablated = torch.tensor(DRAWN_PROBABILITIES).repeat(-(-pairs // len(DRAWN_PROBABILITIES)))
        ablated = ablated[torch.randperm(len(ablated), generator=self.generator)[:pairs]]
        batches, rest = [], []
        for some, p in zip(torch.split(rows, TOGETHER), torch.split(ablated, TOGETHER), strict=True):
            left = torch.rand(len(some), self.judge.index.total, generator=self.generator) >= p[:, None]
            batches.append(pair_batch(data, some, device))
            rest.append(left.repeat_interleave(2, 0).to(device))
        return Beside(batches, rest, torch.cat([batch.sides for batch in batches]))

    @torch.no_grad()
    def margins(self, draw: Beside, keep: Tensor) -> Tensor:
        """(P,) of a circuit `keep` (N,)."""
        gates = (torch.where(rest, 1.0, keep.float()) for rest in draw.rest)
        return torch.cat([self._margins(*both) for both in zip(draw.batches, gates, strict=True)])

    def changes(self, draw: Beside, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Margins (P,) of a circuit, and first-order estimates (P, N) of how they change with a node's gate."""
        margins, found = [], []
        for batch, rest in zip(draw.batches, draw.rest, strict=True):
            gates = torch.where(rest, 1.0, keep.float()).requires_grad_()
            own = self._margins(batch, gates)
            (gradient,) = torch.autograd.grad(own.sum(), gates)  # of each prompt its own
            margins.append(own.detach())
            found.append(gradient.masked_fill(rest, 0))
        return torch.cat(margins), torch.cat(found)

    def _margins(self, batch: AnswerBatch, gates: Tensor) -> Tensor:
        return self.whole.margins(batch, Gates(self.judge.index.split(gates)))

    def fitted(self, draw: Beside, margins: Tensor, alone: Tensor, enough: float = ENOUGH) -> tuple[float, Calibration]:
        """The calibration for margins (P,) of a draw and those `alone`, with all other nodes ablated: the best for
        their mean, made softer as long as that lowers what is furthest beyond its bound, and where that is at `enough`
        or below as far as it stays there. And how far that is, 1 being the bound."""
        fit = calibrate(torch.cat([margins, alone]), torch.cat([draw.sides, self.judge.sides]), self.max_scale)
        lead, rest = (
            SOFTER[:, None].to(some.device) * (fit.scale * some.double() + fit.shift * sides)
            for some, sides in ((margins, draw.sides), (alone, self.judge.sides))
        )
        excess = torch.maximum(self.excess(lead), F.softplus(-rest).mean(-1) / self.target)
        softest = int((excess <= max(float(excess.min()), enough)).nonzero()[-1])
        scale = float(SOFTER[softest])
        return float(excess[softest]), Calibration(scale * fit.scale, scale * fit.shift)

    def excess(self, lead: Tensor) -> Tensor:
        """(...,) of calibrated margins (..., P): their mean loss or that of the worst pairs over its bound, whichever
        is larger."""
        return torch.maximum(
            F.softplus(-lead).mean(-1) / (MEAN * self.target), worst_pairs(lead) / (TAIL * self.target)
        )

    def start(self, keep: Tensor) -> None:
        """From a circuit (N,) that masks have learned: what is left of it may need logits of at most `LOUDER` times
        the scale. One that needs more has small margins, and what subsets change is multiplied as well."""
        _, fit = self.fitted(self.first, self.margins(self.first, keep), self.judge.margins(keep), enough=1.0)
        self.max_scale = min(self.max_scale, LOUDER * fit.scale)

    def reached(self, keep: Tensor) -> bool:
        """Whether a circuit (N,) is at the target with all other nodes ablated and on average over the first draw, or
        there at least as good as the whole model."""
        if not self.judge.at(self.target)(keep):
            return False
        return self._first_loss(keep) <= max(self.target, self._whole_loss)

    def worth(self, keep: Tensor) -> Tensor:
        """(N,) fall in loss (nats) in the first draw for each unit by which a node's gate is opened."""
        margins, gradient = self.changes(self.first, keep)
        lead = self.first.lead(margins, self.fitted(self.first, margins, self.judge.margins(keep))[1])
        return (torch.sigmoid(-lead)[:, None] * gradient).mean(0)

    def calibration(self, keep: Tensor) -> Calibration:
        """Of a circuit (N,): by fresh subsets, and at the target or below where all other nodes are ablated."""
        draw, alone = self.draw(2 * DRAWN_PAIRS), self.judge.margins(keep)
        _, found = self.fitted(draw, self.margins(draw, keep), alone)
        if float(task_loss(alone.double(), self.judge.sides, found)) <= self.target:
            return found
        return softened(self.judge.fitted(alone)[1], alone, self.judge.sides, self.target)

    @cached_property
    def _whole_loss(self) -> float:
        return self._first_loss(self.judge.everything())

    def _first_loss(self, keep: Tensor) -> float:
        margins = self.margins(self.first, keep)
        fit = calibrate(margins, self.first.sides, self.judge.max_scale)
        return float(task_loss(margins.double(), self.first.sides, fit))


def worst_pairs(lead: Tensor) -> Tensor:
    """(...,) mean loss of the worst tenth of pairs, of calibrated margins (..., P)."""
    pairs = F.softplus(-lead).view(*lead.shape[:-1], -1, 2).mean(-1)
    return pairs.topk(max(1, pairs.shape[-1] // 10), -1).values.mean(-1)


def spared(subsets: Subsets, nodes: Tensor) -> Tensor:
    """Those of `nodes` (N,) that the circuit needs in subsets."""
    circuit = _Circuit(subsets, nodes)
    failed = 0
    for _ in range(DRAWN_ROUNDS):
        failed += not circuit.shed()
        if failed == EMPTY_ROUNDS:
            break
    return circuit.nodes


class _Circuit:
    """What is left of a circuit (N,), and what draws have said of it so far."""

    def __init__(self, subsets: Subsets, nodes: Tensor) -> None:
        self.subsets, self.nodes = subsets, nodes
        self.parts = Parts(subsets.judge.model, nodes)
        self.worth = torch.zeros(len(nodes), dtype=torch.float64, device=nodes.device)
        self.needed = torch.zeros_like(nodes)
        self.loss, self.weight, self.trust = 0.0, 0.0, 1.0

    def shed(self) -> bool:
        """Whether some of its cheapest nodes could go, by a draw to choose them and another to check; they are gone.
        Where they could not, less is believed of the estimates."""
        self._look()
        check, tries, before = _Check(self), SINGLE_TRIES, self.nodes
        most = max(1, round(SHARE_OF_A_ROUND * int(before.sum())))
        while tries:
            queue, affordable = self._queue(check.rise)
            affordable = min(affordable, most - int((before & ~self.nodes).sum()))
            passed = next((n for n in halved(affordable) if check.passed(self._without(queue[:n]))), 0)
            self.nodes = self._without(queue[:passed])
            if affordable < 1:
                break
            if not passed:
                self.needed[queue[0]] = True  # first order does not see what saturated attention needs
                tries -= check.alone(self._without(queue[:1]))
        gone = not torch.equal(before, self.nodes)
        self.trust /= 1 if gone else 2
        return gone

    def _without(self, some: Tensor) -> Tensor:
        return self.nodes.index_fill(0, some, False)

    def _look(self) -> None:
        """Takes in what a fresh draw says: the mean loss, and by how much it rises without each of the nodes."""
        draw = self.subsets.draw()
        margins, gradient = self.subsets.changes(draw, self.nodes)
        _, fit = self.subsets.fitted(draw, margins, self.subsets.judge.margins(self.nodes))
        lead = draw.lead(margins, fit)[:, None]
        rise = F.softplus(fit.scale * gradient - lead) - F.softplus(-lead)
        self.worth = KEPT * self.worth + rise.mean(0)
        self.loss = KEPT * self.loss + float(F.softplus(-lead).mean())
        self.weight = KEPT * self.weight + 1

    def _queue(self, rise: float) -> tuple[Tensor, int]:
        """Nodes (n,) that have not proved needed, those first that are worth the least for each edge that goes with
        them; and how many of the first ones the bound on the mean has room for, after a `rise` since the last look."""
        nodes = (self.nodes & ~self.needed).nonzero().squeeze(1)
        worth = (self.worth[nodes] / self.weight).abs()  # far below zero first order says no more than far above
        keep = self.parts.closed(torch.cat([self.nodes, torch.ones_like(self.parts.source, dtype=torch.bool)]))
        order = (worth / (self.parts.saved(keep)[nodes] + 1)).argsort(stable=True)
        room = self.trust * (MEAN * self.subsets.target - self.mean - rise)
        return nodes[order], int((worth[order].cumsum(0) <= room).sum())

    @property
    def mean(self) -> float:
        """Loss over subsets, in nats."""
        return self.loss / self.weight


class _Check:
    """Removals of one round, on a draw that did not choose them; made when the first one is asked for."""

    def __init__(self, circuit: _Circuit) -> None:
        self.circuit, self.subsets = circuit, circuit.subsets
        self.draw: Beside | None = None
        self.rise = 0.0  # of the mean loss, by what has gone in this round

    def passed(self, candidate: Tensor) -> bool:
        """Whether a smaller circuit (N,), under one calibration, is at the target with all other nodes ablated, and in
        subsets within the bound on the mean, and in that on the worst pairs or no worse than the circuit is."""
        if not self.alone(candidate):
            return False
        if self.draw is None:
            self.draw = self.subsets.draw()
            _, self.mean, self.worst = self._losses(self.draw, self.circuit.nodes)
        alone, mean, worst = self._losses(self.draw, candidate)
        target, rise = self.subsets.target, mean - self.mean
        within = alone <= target and self.circuit.mean + rise <= MEAN * target
        if within and worst <= max(TAIL * target, self.worst):
            self.rise = rise
            return True
        return False

    def alone(self, candidate: Tensor) -> bool:
        """Whether it is at the target with all other nodes ablated, calibrated for that."""
        return self.subsets.judge.at(self.subsets.target)(candidate)

    def _losses(self, draw: Beside, keep: Tensor) -> tuple[float, float, float]:
        """With all other nodes ablated; the mean in subsets; that of the worst pairs."""
        judge = self.subsets.judge
        margins, alone = self.subsets.margins(draw, keep), judge.margins(keep)
        _, fit = self.subsets.fitted(draw, margins, alone)
        lead = draw.lead(margins, fit)
        return (
            float(task_loss(alone.double(), judge.sides, fit)),
            float(F.softplus(-lead).mean()),
            float(worst_pairs(lead)),
        )
