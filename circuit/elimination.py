"""Greedy removal of nodes and edges that the target loss does not need, every step checked by the loss itself.

Learned masks leave such parts behind, which people then delete by hand (METHOD 6, known weaknesses). What comes out is
minimal: without any single one of its parts it would miss the target.

Shapes: `keep` is boolean (N + E,), see `Parts`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit.parts import Parts

PATIENCE = 16
"""Parts in a row that may prove needed before a pass starts over with new estimates."""

AT_ONCE = 4
"""Candidates judged in one go."""


def eliminate(parts: Parts, keep: Tensor, target: float) -> Tensor:
    """`keep`, which reaches the target loss, without the parts that the target can spare.

    Passes go through the parts from the cheapest on: the least estimated rise in loss for each edge that goes. The
    last pass tries every single part that is left.
    """
    while True:
        left = _one_pass(parts, keep, target, PATIENCE)
        if torch.equal(left, keep):
            left = _one_pass(parts, keep, target, len(keep))
            if torch.equal(left, keep):
                return keep
        keep = left


def _one_pass(parts: Parts, keep: Tensor, target: float, patience: int) -> Tensor:
    """Removes from the front of the queue the longest run that the target can spare, while there is one; then looks
    at the next parts one by one, and takes out all that can be spared together, or else the first."""
    loss, calibration = parts.calibrated(keep)
    harm = parts.harm(keep, calibration)
    removable = parts.removable(keep)
    # one more than the edges saved: of two parts that save the same, the less harmful goes first, also if that is none
    price = (harm / (parts.saved(keep) + 1)).masked_fill(~removable, torch.inf)
    queue, failures = price.argsort(stable=True)[: int(removable.sum())], 0
    while len(queue) and failures < patience:
        affordable = int((harm[queue].clamp_min(0).cumsum(0) <= target - loss).sum())
        runs = [queue[:n] for n in _halved(affordable)]
        run, after = _longest(parts, keep, runs, target)
        if len(run):
            keep, loss, queue, failures = _without(parts, keep, run), after, queue[len(run) :], 0
            queue = queue[keep[queue]]
            continue
        singles = list(torch.split(queue[:AT_ONCE], 1))
        spared = [one for one, after in zip(singles, _losses(parts, keep, singles), strict=True) if after <= target]
        queue, failures = queue[len(singles) :], failures + len(singles)
        run, after = _longest(parts, keep, [torch.cat(spared), spared[0]] if spared else [], target)
        if len(run):
            keep, loss, failures = _without(parts, keep, run), after, 0
            queue = queue[keep[queue]]
    return keep


def _halved(count: int) -> list[int]:
    """count, half of it, and so on above 1."""
    return [] if count < 2 else [count, *_halved(count // 2)]


def _longest(parts: Parts, keep: Tensor, runs: list[Tensor], target: float) -> tuple[Tensor, float]:
    """The first of the runs without which the target is reached, and the loss then; an empty run if there is none.

    What holds for candidates judged together is checked once more alone, as the circuit will be judged: where two
    activations nearly tie, rounding may let the other one through AbsTopK.
    """
    for run, together in zip(runs, _losses(parts, keep, runs), strict=True):
        if together <= target and (loss := parts.calibrated(_without(parts, keep, run))[0]) <= target:
            return run, loss
    return torch.empty(0, dtype=torch.long, device=keep.device), torch.inf


def _losses(parts: Parts, keep: Tensor, runs: list[Tensor]) -> list[float]:
    return parts.losses(keep, torch.stack([_without(parts, keep, run) for run in runs])) if runs else []


def _without(parts: Parts, keep: Tensor, run: Tensor) -> Tensor:
    return parts.closed(keep.index_fill(0, run, False))
