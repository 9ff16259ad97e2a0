"""Whether the task needs a circuit: what is left of it with only the circuit ablated (METHOD 6, METHOD 11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from circuit.ablated.batches import AnswerBatch
from circuit.ablated.calibration import calibrate, task_loss
from circuit.proofs.kept import CircuitParts


class Necessity(NamedTuple):
    """Of the model with only the circuit ablated, on held-out pairs: task loss in nats of its own logits; after a scale
    and a shift that were fitted on training pairs; and the share of prompts that is then right."""

    raw: float
    calibrated: float
    accuracy: float


def necessity(kept: CircuitParts, train: Sequence[AnswerBatch], heldout: Sequence[AnswerBatch]) -> Necessity:
    """An ablation that only offsets the logits ruins the raw loss; what the model still knows shows after the fit."""
    without = kept.ablated()
    fitted_on, margins = kept.margins(without, train), kept.margins(without, heldout).double()
    sides = torch.cat([batch.sides for batch in heldout])
    fit = calibrate(fitted_on, torch.cat([batch.sides for batch in train]))
    lead = fit.scale * margins + fit.shift * sides
    accuracy = float((lead.sign() + 1).mean() / 2)
    return Necessity(float(task_loss(margins, sides)), float(task_loss(margins, sides, fit)), accuracy)
