"""Greedy removal of nodes and edges that the target loss does not need, every step checked by the loss itself.

Learned masks leave such parts behind, which people then delete by hand (METHOD 6, known weaknesses). What comes out is
minimal: without any single one of its parts it would miss the target.

What is removed is judged on all prompts. Most candidates would miss the target by far, which a sample of the prompts
shows; and all of them are computed only from the sublayer on in which they differ from the circuit (`Trunk`).

Shapes: `keep` is boolean (N + E,), see `Parts`; a *run* (n,) are numbers of parts that may go together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit.batches import AnswerBatch, all_batches
from circuit.calibration import Calibration, calibrated_loss
from circuit.parts import Parts, Trunk

PATIENCE = 16
"""Parts in a row that may prove needed before a pass starts over with new estimates."""

AT_ONCE = 16
"""Candidates looked at in one go."""

SAMPLE = 64
"""Pairs of prompts that candidates are looked at on first, where there are more."""

DOUBT = 1.0
"""Standard errors of the rise in loss on the sample by which it may be overestimated."""

RECUT = 0.8
"""Share of its parts that a circuit may shrink to before the model is cut down to it anew."""


def eliminate(parts: Parts, keep: Tensor, target: float) -> Tensor:
    """`keep`, which reaches the target loss, without the parts that the target can spare.

    Passes go through the parts from the cheapest on: the least estimated rise in loss for each edge that goes. The
    last pass tries every single part that is left, on all prompts, until all of them have proved needed.
    """
    while not torch.equal(left := _one_pass(parts, keep, target, hasty=True), keep):
        keep = left
    return _one_pass(parts, keep, target, hasty=False)


def _one_pass(parts: Parts, keep: Tensor, target: float, hasty: bool) -> Tensor:
    """Removes from the front of the queue the longest run that the target can spare, while there is one; then those
    of the next parts that it can. A hasty pass trusts the sample, and ends when its patience does."""
    circuit = _Circuit(parts, keep, target)
    harm = circuit.harm
    removable = parts.removable(keep)
    # one more than the edges saved: of two parts that save the same, the less harmful goes first, also if that is none
    price = (harm / (parts.saved(keep) + 1)).masked_fill(~removable, torch.inf)
    queue, needed = price.argsort(stable=True)[: int(removable.sum())], keep.new_empty(0, dtype=torch.long)
    while len(queue) and (len(needed) < PATIENCE or not hasty):
        affordable = int((harm[queue].clamp_min(0).cumsum(0) <= target - circuit.loss).sum())
        runs = [queue[:n] for n in _halved(affordable)]
        gone = any(circuit.removed(run) for run in circuit.promising(runs))
        if not gone:
            looked_at, queue = queue[:AT_ONCE], queue[AT_ONCE:]
            gone = circuit.reduced(looked_at, hasty)
            needed = torch.cat([needed, looked_at])
        if gone:
            queue, needed = torch.cat([queue, needed]), needed[:0]
            queue = queue if hasty else queue[circuit.rise[queue].argsort(stable=True)]
        queue = queue[circuit.keep[queue]]
    return circuit.checked()


def _halved(count: int) -> list[int]:
    """count, half of it, and so on above 1."""
    return [] if count < 2 else [count, *_halved(count // 2)]


class _Circuit:
    """What is left of a circuit, and what its candidates are judged with."""

    def __init__(self, parts: Parts, keep: Tensor, target: float) -> None:
        self.parts, self.target = parts, target
        self.history: list[Tensor] = []
        self.sample = _sample(parts)
        self._cut_to(keep)
        self.harm = parts.harm(keep, self.calibration)
        self.rise = self.harm.clone()  # what is known of it: as estimated, and measured where it was

    @property
    def keep(self) -> Tensor:
        """(N + E,) what is left."""
        return self.trunk.keep

    def removed(self, run: Tensor) -> bool:
        """Whether the target is reached without the run too; if so it is gone."""
        candidate = self._without([run])[0]
        trunk = self.parts.branch(self.trunk, candidate)
        if self._loss(trunk.margins)[0] > self.target:
            return False
        if int(candidate.sum()) < RECUT * self.cut_at:
            self._cut_to(candidate)
        else:
            self._take(trunk, self.few and self.parts.branch(self.few, candidate))
        return True

    def reduced(self, singles: Tensor, hasty: bool) -> bool:
        """Whether any of the single parts (n,) could go; all that can are gone. If hasty, the sample has a say."""
        runs = list(torch.split(singles, 1))
        spared = self.promising(runs) if hasty else self.spared(runs)
        if len(spared) > 1 and self.removed(torch.cat(spared)):
            return True
        return sum(self.removed(one) for one in spared) > 0

    def promising(self, runs: list[Tensor]) -> list[Tensor]:
        """The runs that the target may be able to spare, going by the sample."""
        if self.few is None or not runs:
            return runs
        sides = torch.cat([batch.sides for batch in self.few.batches])
        before = _losses(self.few.margins, sides, self.calibration)
        rise = _losses(self.parts.margins(self.few, self._without(runs)), sides, self.calibration) - before
        least = rise.mean(1) - DOUBT * rise.std(1) / rise.shape[1] ** 0.5
        self.parts.judge.watch.judged(int(self.keep[: self.parts.n_nodes].sum()), self.loss)
        return [run for run, rises in zip(runs, least.tolist(), strict=True) if self.loss + rises <= self.target]

    def spared(self, runs: list[Tensor]) -> list[Tensor]:
        """The runs that the target can spare, going by all prompts."""
        losses = [self._loss(margins)[0] for margins in self.parts.margins(self.trunk, self._without(runs))]
        for run, loss in zip(runs, losses, strict=True):
            self.rise[run] = loss - self.loss
        return [run for run, loss in zip(runs, losses, strict=True) if loss <= self.target]

    def checked(self) -> Tensor:
        """The smallest circuit on the way that reaches the target also as the circuit will be judged: where two
        activations nearly tie, rounding may let the other one through AbsTopK."""
        later = reversed(self.history[1:])
        return next((keep for keep in later if self.parts.calibrated(keep)[0] <= self.target), self.history[0])

    def _without(self, runs: list[Tensor]) -> Tensor:
        """(runs, N + E) what is left without each of the runs."""
        return self.parts.closed(torch.stack([self.keep.index_fill(0, run, False) for run in runs]))

    def _cut_to(self, keep: Tensor) -> None:
        """Go on with a smaller circuit on a model that is cut down to it."""
        self.cut_at = int(keep.sum())
        few = self.parts.trunk(keep, self.sample) if self.sample else None
        self._take(self.parts.trunk(keep, self.parts.judge.batches), few)

    def _take(self, trunk: Trunk, few: Trunk | None) -> None:
        self.trunk, self.few = trunk, few
        self.loss, self.calibration = self._loss(trunk.margins)
        self.history.append(trunk.keep)

    def _loss(self, margins: Tensor) -> tuple[float, Calibration]:
        loss, calibration = calibrated_loss(margins, self.parts.judge.sides)
        self.parts.judge.watch.judged(int(self.keep[: self.parts.n_nodes].sum()), loss)
        return loss, calibration


def _losses(margins: Tensor, sides: Tensor, calibration: Calibration) -> Tensor:
    """Loss of every prompt, of margins (..., prompts)."""
    return F.softplus(-(calibration.scale * margins.double() + calibration.shift * sides))


def _sample(parts: Parts) -> list[AnswerBatch]:
    """A few pairs, of all lengths; none where all are few."""
    data = parts.judge.data
    by_length = data.length.view(-1, 2).amax(1).argsort(stable=True)
    step = data.n_pairs // SAMPLE
    return all_batches(data.some(by_length[step // 2 :: step]), parts.judge.sides.device) if step > 1 else []
