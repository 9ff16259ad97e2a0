"""Greedy removal of nodes and edges that the target loss does not need, every step checked by the loss itself.

Learned masks leave such parts behind, which people then delete by hand (METHOD 6, known weaknesses). What comes out is
minimal, but where tries run out: without any single one of its parts it would miss the target.

Which parts to try is told by what first order says of every *margin*, prompt by prompt: the loss of the margins to be
expected ranks single parts nearly as the loss itself does, and tells how many of the cheapest may go at once. A first
order of the loss would do neither: it misses that a part may help some prompts and ruin others.

Shapes: `keep` is boolean (N + E,), see `Parts`; a *run* (n,) are numbers of parts that may go together; P prompts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit.ablated.calibration import softened
from circuit.search.branches import Branches, Trunk
from circuit.search.discretise import halved
from circuit.search.evaluation import Judge
from circuit.search.parts import Parts

AT_ONCE = 16
"""Single parts tried in one go."""

SHARE = 0.1
"""Share of a circuit's parts that may go, at once or in all, before estimates are made anew."""

ROUNDS = 2
"""How many times at the most every part is tried by itself."""

RECUT = 0.8
"""Share of its parts that a circuit may shrink to before the model is cut down to it anew."""


def eliminate(judge: Judge, parts: Parts, keep: Tensor, target: float) -> Tensor:
    """`keep`, which reaches the target loss of a judge, without the parts that the target can spare.

    Runs of parts go first, those from the front that change the loss the least for each edge that goes. Then every
    single part that is left is tried, round and round until all of them have proved needed, or for `ROUNDS` rounds.
    """
    circuit = _Circuit(judge, parts, keep, target)
    circuit.shed()
    queue, needed = circuit.queue_within_budget(*circuit.estimates())[0], 0
    tries = ROUNDS * len(queue)
    while needed < len(queue) and tries > 0:
        looked_at = queue[:AT_ONCE]
        tries -= len(looked_at)
        if circuit.reduced(looked_at):
            circuit.shed()
            needed = 0
        else:
            needed += len(looked_at)
        queue = torch.cat([queue[AT_ONCE:], looked_at])
        queue = queue[circuit.keep[queue]]
    return circuit.checked()


class _Circuit:
    """What is left of a circuit, and what its candidates are judged with."""

    def __init__(self, judge: Judge, parts: Parts, keep: Tensor, target: float) -> None:
        self.judge, self.parts, self.target = judge, parts, target
        self.branches = Branches(judge, parts)
        self.history: list[Tensor] = []
        self._cut_to(keep)

    @property
    def keep(self) -> Tensor:
        """(N + E,) what is left."""
        return self.trunk.keep

    def shed(self) -> None:
        """Removes runs of the cheapest parts while any can go."""
        gone = True
        while gone:
            gone, before = False, int(self.keep.sum())
            most = max(1, round(SHARE * before))
            singles, changes = self.estimates()
            while int(self.keep.sum()) > before - most and self._shed(singles, changes, most):
                gone = True

    def _shed(self, singles: Tensor, changes: Tensor, most: int) -> bool:
        queue, affordable = self.queue_within_budget(singles, changes)
        return any(self.removed(queue[:n]) for n in halved(min(affordable, most)))

    def estimates(self) -> tuple[Tensor, Tensor]:
        """The parts (n,) that may go, and how their removal is expected to change the margins (n, P)."""
        singles = self.parts.removable(self.keep).nonzero().squeeze(1)
        return singles, self.branches.changes(self.keep, singles)

    def queue_within_budget(self, singles: Tensor, changes: Tensor) -> tuple[Tensor, int]:
        """Those of `singles` (n,) that are left, and how many of the first of them the target is expected to spare
        together, by the changes (n, P) of the margins."""
        left = self.keep[singles]
        singles, changes = singles[left], changes[left]
        lead, alone = self._expected(changes)
        before = float(F.softplus(-lead).mean())
        most = max(self.target, before + self.target - self.loss)
        # one more than the edges saved: of two parts that save the same, the less harmful goes first, also if that
        # is none
        price = (alone - before).abs() / (self.parts.saved(self.keep)[singles] + 1)
        order = price.masked_fill(alone > most, torch.inf).argsort(stable=True)
        lead = lead + (changes[order] * self.calibration.scale).cumsum(0)
        together = F.softplus(-lead).mean(-1) <= most
        return singles[order], int(together.cumprod(0).sum())

    def _expected(self, changes: Tensor) -> tuple[Tensor, Tensor]:
        """Calibrated margins (P,) of the circuit, and the losses (n,) that changes (n, P) of its margins lead to."""
        scale, shift = self.calibration
        lead = (scale * self.trunk.margins + shift * self.judge.sides).float()
        return lead, F.softplus(-(lead + changes * scale)).mean(1)

    def removed(self, run: Tensor) -> bool:
        """Whether the target is reached without the run too; if so it is gone."""
        candidate = self._without([run])[0]
        trunk = self.branches.branch(self.trunk, candidate)
        if self.judge.fitted(trunk.margins)[0] > self.target:
            return False
        if int(candidate.sum()) < RECUT * self.cut_at:
            self._cut_to(candidate)
        else:
            self._take(trunk)
        return True

    def reduced(self, singles: Tensor) -> bool:
        """Whether any of the single parts (n,) could go; all that can are gone."""
        runs = list(torch.split(singles, 1))
        losses = self.branches.losses(self.trunk, self._without(runs))
        self.judge.watch.judged(int(self.keep[: self.parts.n_nodes].sum()), self.loss)
        spared = [runs[i] for i in losses.argsort(stable=True).tolist() if losses[i] <= self.target]
        if len(spared) > 1 and self.removed(torch.cat(spared)):
            return True
        return sum(self.removed(run) for run in spared) > 0

    def checked(self) -> Tensor:
        """The smallest circuit on the way that reaches the target also as the circuit will be judged: where two
        activations nearly tie, rounding may let the other one through AbsTopK."""
        later = reversed(self.history[1:])
        return next((keep for keep in later if self.branches.calibrated(keep)[0] <= self.target), self.history[0])

    def _without(self, runs: list[Tensor]) -> Tensor:
        """(runs, N + E) what is left without each of the runs."""
        return self.parts.closed(torch.stack([self.keep.index_fill(0, run, False) for run in runs]))

    def _cut_to(self, keep: Tensor) -> None:
        """Go on with a smaller circuit on a model that is cut down to it."""
        self.cut_at = int(keep.sum())
        self._take(self.branches.trunk(keep))

    def _take(self, trunk: Trunk) -> None:
        self.trunk = trunk
        self.loss, fit = self.judge.fitted(trunk.margins)
        self.calibration = softened(fit, trunk.margins, self.judge.sides, self.target)
        self.history.append(trunk.keep)
        self.judge.watch.judged(int(self.keep[: self.parts.n_nodes].sum()), self.loss)
