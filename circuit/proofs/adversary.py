"""The worst choice of other parts to ablate that gradient ascent finds: one choice for all prompts (METHOD 11).

Every part that a circuit does not keep has a parameter; it is left alone where that is above 0, and ablated elsewhere.
Gates are hard, as in mask learning, and parameters climb the task loss. Choices are made on training pairs, among what
climbing leads to and the worst random choices, and judged on held-out pairs.

Shapes: S starts, O parts that are not kept, see `CircuitParts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit.ablated.batches import AnswerBatch
from circuit.proofs.kept import CircuitParts
from circuit.proofs.subsets import SubsetLosses, losses_beside
from circuit.search.learning import Adam, BatchOrder, gates_of
from circuit.tasks import PairBatch

STARTS = 20
STEPS = 50

LR = 0.1
"""Step of a parameter; they start within 0.1 of 0, so that a few steps of one direction turn a part over."""

PAIRS_PER_STEP = 8

TRIED = 5
"""Of the worst random choices, how many are tried beside what climbing leads to."""


class Attack(NamedTuple):
    """Task loss in nats on held-out pairs under the worst choice found, and how many parts it ablates."""

    loss: float
    ablated: int


def attack(
    kept: CircuitParts,
    train: PairBatch,
    judged_on: tuple[Sequence[AnswerBatch], Sequence[AnswerBatch]],
    drawn: SubsetLosses,
    seed: int,
    starts: int = STARTS,
    steps: int = STEPS,
) -> Attack:
    """The worst of all choices tried: those that the ascent ends at, and the worst of random ones `drawn`, so that it
    is never weaker than these. `judged_on` are batches of training pairs, to choose on, and of held-out ones."""
    on_train, on_heldout = judged_on
    worst = torch.tensor(drawn.losses).argsort(descending=True)[:TRIED]
    found = torch.cat([drawn.alone[worst.to(drawn.alone.device)], climbed(kept, train, seed, starts, steps)])
    chosen = found[int(torch.tensor(losses_beside(kept, found, on_train)).argmax())]
    loss = losses_beside(kept, chosen[None], on_heldout)[0]
    if loss < drawn.worst:
        chosen, loss = drawn.alone[worst[0]], drawn.worst
    return Attack(loss, int((~chosen).sum()))


def climbed(kept: CircuitParts, train: PairBatch, seed: int, starts: int = STARTS, steps: int = STEPS) -> Tensor:
    """Choices (S, O), true where a part is left alone, at the end of as many ascents."""
    device = kept.nodes.device
    generator = torch.Generator().manual_seed(seed)
    # from any share of the parts left alone: all of them, none, and between
    lean = torch.linspace(-0.1, 0.1, starts)[:, None]
    noise = 0.1 * (2 * torch.rand(starts, len(kept.others), generator=generator) - 1)
    tau = (lean + noise).to(device).requires_grad_()
    adam, whole = Adam(tau, 0.95, 0.0), kept.whole()
    order = BatchOrder(train, PAIRS_PER_STEP, generator, device)
    for _ in range(steps):
        batch = order.next()
        together = AnswerBatch(*(field.repeat(starts, *(1,) * (field.dim() - 1)) for field in batch))
        margins = whole.margins(together, kept.gates(whole, gates_of(tau, 1.0)))
        lead = kept.calibration.scale * margins + kept.calibration.shift * together.sides
        # of prompts that are right by far the loss has no slope, but they have to be brought down as well
        harm = F.softplus(-lead) - 0.1 * lead
        (gradient,) = torch.autograd.grad(-harm.view(starts, -1).mean(1).sum(), tau)
        adam.step(gradient, LR)
        with torch.no_grad():
            tau.clamp_(-1, 1)
    return (tau > 0).detach()
