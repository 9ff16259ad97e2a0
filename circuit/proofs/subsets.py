"""Whether a circuit holds whatever part of the rest is ablated, not only where all of it is (METHOD 11).

Shapes: O parts that a circuit does not keep, see `CircuitParts`; K choices of those that are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from circuit.ablated.batches import AnswerBatch
from circuit.ablated.calibration import task_loss
from circuit.proofs.kept import CircuitParts

PROBABILITIES = (1.0, 0.9, 0.75, 0.5, 0.25)
"""With which every part that is not kept is ablated: as many draws of each."""


class SubsetLosses(NamedTuple):
    """Task loss in nats of each of K random choices, and the choices `alone` (K, O)."""

    losses: list[float]
    alone: Tensor

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)

    @property
    def worst(self) -> float:
        return max(self.losses)


def draws(kept: CircuitParts, count: int, seed: int) -> Tensor:
    """(K, O) true where a part is left alone."""
    generator = torch.Generator().manual_seed(seed)
    ablated = torch.tensor(PROBABILITIES).repeat(-(-count // len(PROBABILITIES)))[:count, None]
    return (torch.rand(count, len(kept.others), generator=generator) >= ablated).to(kept.nodes.device)


def losses_beside(kept: CircuitParts, alone: Tensor, batches: Sequence[AnswerBatch]) -> list[float]:
    """Task loss of each choice `alone` (K, O), under the circuit's calibration."""
    sides = torch.cat([batch.sides for batch in batches])
    margins = (kept.margins(kept.beside(one), batches).double() for one in alone)
    return [float(task_loss(margin, sides, kept.calibration)) for margin in margins]


def in_subsets(kept: CircuitParts, batches: Sequence[AnswerBatch], count: int, seed: int) -> SubsetLosses:
    """Losses of random choices of the parts that are ablated."""
    alone = draws(kept, count, seed)
    return SubsetLosses(losses_beside(kept, alone, batches), alone)
