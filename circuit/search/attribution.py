"""First-order estimates of what nodes are worth to a task.

Shapes: N nodes of a model in the order of `NodeIndex`, P prompts, B of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuit.ablated.calibration import IDENTITY, Calibration, task_loss
from circuit.ablated.compact import AblatedModel, Gates
from circuit.search.evaluation import Judge


def attributions(judge: Judge, gates: Tensor, calibration: Calibration = IDENTITY) -> Tensor:
    """(N,) fall in task loss (nats) for each unit by which a node's gate is opened, where the gates are at `gates`.

    A gate of 1 is the activation, 0 the mean: with all of them at 1 this is gradient × (mean − activation).
    """
    whole = AblatedModel(judge.model, judge.means, judge.index.channels(judge.everything()))
    gates = gates.detach().float().requires_grad_()
    total = torch.zeros_like(gates)
    for batch in judge.batches:
        loss = task_loss(whole.margins(batch, Gates(judge.index.split(gates))), batch.sides, calibration)
        (gradient,) = torch.autograd.grad(loss, gates)
        total -= gradient * len(batch.sides) / len(judge.sides)
    return total


def margin_attributions(judge: Judge, gates: Tensor) -> Tensor:
    """(N, P) rise of every prompt's margin (nats) for each unit by which a node's gate is opened, at `gates` (N,)."""
    whole = AblatedModel(judge.model, judge.means, judge.index.channels(judge.everything()))
    found = []
    for batch in judge.batches:
        own = gates.detach().float().repeat(len(batch.sides), 1).requires_grad_()
        margins = whole.margins(batch, Gates(judge.index.split(own)))
        found.append(torch.autograd.grad(margins.sum(), own)[0])  # of each prompt its own
    return torch.cat(found).T
