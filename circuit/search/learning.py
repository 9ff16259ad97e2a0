"""What mask learning is made of: the step function, the optimiser, what a node costs, and two guards of the task.

Shapes: N nodes of a model, E edges between those in the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from circuit.ablated.batches import AnswerBatch, pair_batch
from circuit.ablated.calibration import Calibration, task_loss
from circuit.search.config import PruneConfig
from circuit.tasks import PairBatch

USUAL_TARGET = 0.15
"""Task loss in nats for which the least price of a node is meant as it is (METHOD 6)."""

AVERAGED = 0.2
"""Weight of the latest batch in the running loss."""

EPSILON = 1e-12
"""Of Adam: far below any gradient that a mask gets, since a node's price alone can be 1e-4."""


EASE = 0.25
"""Share of the target loss below which masks are learned with a smaller scale of the logits instead."""


class StraightThrough(torch.autograd.Function):
    """1 where tau > 0, else 0; backward as if it were sigmoid(tau / temperature)."""

    @staticmethod
    def forward(ctx: Any, tau: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(tau)
        ctx.temperature = temperature
        return (tau > 0).to(tau.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (tau,) = ctx.saved_tensors
        sigmoid = torch.sigmoid(tau / ctx.temperature)
        return grad * sigmoid * (1 - sigmoid) / ctx.temperature, None


def gates_of(tau: Tensor, temperature: float) -> Tensor:
    """Gates in {0, 1} of mask parameters tau, with a gradient for every one of them."""
    return StraightThrough.apply(tau, temperature)  # type: ignore[no-any-return,no-untyped-call]


class Adam:
    """AdamW of one tensor. By hand because torch.optim imports torch's compiler, which takes 4 seconds."""

    def __init__(self, parameter: Tensor, beta2: float, weight_decay: float) -> None:
        self.parameter, self.betas, self.weight_decay = parameter, (0.9, beta2), weight_decay
        self.first, self.second = torch.zeros_like(parameter), torch.zeros_like(parameter)
        self.steps = 0

    @torch.no_grad()
    def step(self, gradient: Tensor, lr: float) -> None:
        """Move the parameter by its gradient, at the given learning rate."""
        self.steps += 1
        self.first.lerp_(gradient, 1 - self.betas[0])
        self.second.lerp_(gradient.square(), 1 - self.betas[1])
        mean, square = (m / (1 - b**self.steps) for m, b in zip((self.first, self.second), self.betas, strict=True))
        self.parameter.mul_(1 - lr * self.weight_decay).sub_(lr * mean / (square.sqrt() + EPSILON))


def clipped(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients scaled down to a joint norm of 1 where it is larger."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return [gradient / norm.clamp_min(1.0) for gradient in gradients]


def schedule(step: int, config: PruneConfig) -> float:
    """Share of the peak learning rate: linear warm-up, then linear decay to 0."""
    warmup = max(1, round(config.warmup * config.steps))
    return min((step + 1) / warmup, (config.steps - step) / max(1, config.steps - warmup))


class BatchOrder:
    """Batches of pairs in random order."""

    def __init__(self, data: PairBatch, pairs: int, generator: torch.Generator, device: torch.device) -> None:
        self.data, self.pairs, self.generator, self.device = data, pairs, generator, device
        self.epoch: list[Tensor] = []

    def next(self) -> AnswerBatch:
        """The next batch; every pair once in each epoch."""
        if not self.epoch:
            order = torch.randperm(self.data.n_pairs, generator=self.generator)
            self.epoch = list(torch.split(order, self.pairs))
        return pair_batch(self.data, self.epoch.pop(), self.device)


class Price:
    """What nodes cost, in nats. It rises while the running `loss` is below the target and falls while it is above.

    So learning ends with the fewest nodes it can find *at the target*, not wherever a fixed price leads: the paper
    tunes k_coef per model and task, here it is only where the price starts. A node's price goes mostly by its edges,
    which is what circuits are compared by: of two equally useful nodes the one with fewer weights stays.
    """

    def __init__(self, config: PruneConfig) -> None:
        # at a strict target a node that is worth a small part of the usual price is needed all the same
        self.least = config.k_coef * min(1.0, math.sqrt(config.target_loss / USUAL_TARGET))
        self.per_node, self.loss = self.least, config.target_loss
        self.target, self.speed, self.share = config.target_loss, config.steer, config.edge_price

    def of(self, gates: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
        """Of gates (N,) and the edges between nodes `ends` (E,), (E,): `edge_price` of it goes by edges, in units that
        leave the mean price of a node as it is."""
        nodes = gates.sum()
        edges = (gates[ends[0]] * gates[ends[1]]).sum()
        unit = (nodes / (2 * edges).clamp_min(1)).detach()
        return self.per_node * ((1 - self.share) * nodes + self.share * unit * edges)

    def steer(self, loss: float) -> None:
        """After a batch of this task loss in nats."""
        self.loss += AVERAGED * (loss - self.loss)
        error = math.log(self.target / self.loss)
        self.per_node = max(self.per_node * math.exp(self.speed * max(-2.0, min(2.0, error))), self.least)


class Ease:
    """Where a model does its task with ease the scale of its logits is lowered.

    Where every margin is large no single node has a gradient: all would fall below zero together, and the task with
    them. `fit` (2,) are the logarithm of the scale and the shift.
    """

    def __init__(self, target: float) -> None:
        self.least = EASE * min(target, math.log(2))  # chance is as unsure as can be

    @torch.no_grad()
    def temper(self, fit: Tensor, margins: Tensor, sides: Tensor) -> None:
        """Start from a scale at which a model of these margins is no surer of its answers."""
        while float(task_loss(margins, sides, Calibration(float(fit[0].exp())))) < self.least:
            fit[0] -= 0.1

    def turn(self, gradient: Tensor, loss: float) -> None:
        """Let the scale fall where the loss is too low."""
        if loss < self.least:
            gradient[0].neg_()


class Rescue:
    """Remembers the fewest nodes that did the task, to go back to when it breaks down.

    With several nodes of a chain off at once none of them has a gradient, so nothing else would bring them back.
    """

    def __init__(self, target: float) -> None:
        self.target, self.broken = target, (target + math.log(2)) / 2
        self.fewest: int | None = None
        self.best: Tensor | None = None

    def after(self, tau: Tensor, kept: int, loss: float) -> Tensor | None:
        """The tau (N,) to go back to after a step that left `kept` nodes at a running loss; None to go on."""
        if loss <= self.target and (self.fewest is None or kept < self.fewest):
            self.fewest, self.best = kept, tau.clone()
        return self.best if loss > self.broken else None
