"""Learning which nodes to keep (METHOD 6, mask learning).

One parameter tau per node, in one flat vector (N,) over all sites; a node is kept where tau > 0. The loss is the
two-way cross-entropy plus k_coef per kept node, and tau follows its gradient through the step
function as if that were a sigmoid of temperature T.

Where this differs from the paper: what a node costs goes mostly by its edges, which is what circuits are compared by:
of two equally useful nodes the one with fewer weights stays (`PruneConfig.edge_price`). Nodes whose tau is below zero
and falling are *retired*, they stay ablated and the forward pass is cut down to what is left (`AblatedModel`). k_coef,
which the paper tunes per model and task, is only where the price starts: it rises while the loss is below the target
and falls back while it is above, so that learning ends with the fewest nodes it can find *at the target*, not wherever
a fixed price leads. Two guards keep the task from breaking down on the way: `EASE`, and `_Learner.rescue`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.ablated.batches import AnswerBatch, pair_batch
from circuit.ablated.calibration import Calibration, task_loss
from circuit.ablated.compact import AblatedModel
from circuit.graph.edges import edge_ends
from circuit.search.config import PruneConfig
from circuit.search.watch import SILENT, Watch
from circuit.tasks import PairBatch
from sparse_model.model.sites import site_names, site_width
from sparse_model.model.transformer import SparseTransformer

SNAPSHOT_STEPS = 10
"""Steps between the states among which the best is chosen."""

HOPELESS = 3.0
"""Times the target that the running loss of a state may be for it to be tried on all prompts, and"""

HOPEFUL = 0.1
"""a running loss, in nats, at which it always is: one that gets every prompt right can be calibrated to any loss."""

USUAL_TARGET = 0.15
"""Task loss in nats for which the least price of a node is meant as it is (METHOD 6)."""

EPSILON = 1e-12
"""Of Adam: far below any gradient that a mask gets, since a node's price alone can be 1e-4."""


EASE = 0.25
"""Share of the target loss below which masks are learned with a smaller scale of the logits instead.

Where every margin is large no single node has a gradient: all would fall below zero together, and the task with them.
"""


class NodeIndex:
    """Where each site's nodes lie in a flat vector (N,) over all nodes of a model, in the order of a forward pass."""

    def __init__(self, model: SparseTransformer) -> None:
        self.widths = {name: site_width(model.config, name) for name in site_names(model.config)}
        *starts, self.total = itertools.accumulate(self.widths.values(), initial=0)
        self.first = dict(zip(self.widths, starts, strict=True))
        self.device = model.embedding.device
        self.starts = torch.tensor(starts, device=self.device)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views (..., C) of a flat vector (..., N), one per site."""
        return dict(zip(self.widths, torch.split(flat, list(self.widths.values()), -1), strict=True))

    def channels(self, keep: Tensor) -> dict[str, Tensor]:
        """Site -> channels where the flat boolean `keep` (N,) is true."""
        kept = keep.nonzero().squeeze(1)  # of all sites at once: a GPU is waited for every time
        ends = [*torch.searchsorted(kept, self.starts).tolist(), len(kept)]
        parts = torch.split(kept, [b - a for a, b in itertools.pairwise(ends)])
        return {name: part - self.first[name] for name, part in zip(self.widths, parts, strict=True)}

    def flat(self, nodes: Mapping[str, Sequence[int]]) -> Tensor:
        """Boolean `keep` (N,) that is true at the given channels of the given sites."""
        keep = torch.zeros(self.total, dtype=torch.bool, device=self.device)
        for name, part in self.split(keep).items():
            part[list(nodes.get(name, ()))] = True
        return keep


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


def learn_masks(
    model: SparseTransformer,
    data: PairBatch,
    means: Means,
    config: PruneConfig,
    reaches: Callable[[Tensor], bool],
    among: Tensor | None = None,
    watch: Watch = SILENT,
) -> Tensor:
    """Mask parameters tau (N,) in [-1, 1] after learning; order nodes by it, keep those above 0.

    `reaches` tells whether nodes (N,) reach the target on all of the data. Of the states on the way, the one of fewest
    nodes that does is returned: a batch shows too little to stop learning from drifting past the target. Nodes outside
    `among` (N,), if it is given, are off for good.
    """
    learner = _Learner(model, data, means, config, among)
    states, near = [], []
    for step in range(config.steps):
        loss = learner.step(step)
        learner.rescue()
        learner.retire()
        if (step + 1) % SNAPSHOT_STEPS == 0 or step + 1 == config.steps:
            states.append(learner.tau.detach().clone())
            near.append(learner.average_loss <= max(HOPEFUL, HOPELESS * config.target_loss))
        watch.learning(step + 1, config.steps, learner.n_kept, loss)
    return best_state(states, near, reaches)


def best_state(states: Sequence[Tensor], near: Sequence[bool], reaches: Callable[[Tensor], bool]) -> Tensor:
    """The tau (N,) of fewest kept nodes that reach the target, else the last; nodes that are off in it are ordered
    by how long they were on, which is all that is known of those that were retired early.

    Only states that are `near` the target are tried.
    """
    by_size = sorted(compress(states, near), key=lambda tau: int((tau > 0).sum()))
    tau = next((tau for tau in by_size if reaches(tau > 0)), states[-1])
    lifetime = torch.stack([state > 0 for state in states]).float().mean(0)
    return torch.where(tau > 0, tau, lifetime - 1)


class _Learner:
    """Everything that changes while masks are learned."""

    def __init__(
        self, model: SparseTransformer, data: PairBatch, means: Means, config: PruneConfig, among: Tensor | None
    ) -> None:
        self.model, self.data, self.means, self.config = model, data, means, config
        self.device = model.embedding.device
        self.index = NodeIndex(model)
        self.generator = torch.Generator().manual_seed(config.seed)
        noise = torch.randn(self.index.total, generator=self.generator) * config.init_noise
        tau = self._tied((config.init_bias + noise).clamp(-1, 1).to(self.device))
        among = torch.ones_like(tau, dtype=torch.bool) if among is None else among
        self.tau = tau.masked_fill(~among, -1).requires_grad_()
        # the logits' scale (its logarithm) and shift are learned along, as bisection will fit them
        self.fit = torch.zeros(2, device=self.device, requires_grad=True)
        self.adam = [Adam(self.tau, config.beta2, config.weight_decay), Adam(self.fit, config.beta2, 0.0)]
        self.ease = EASE * min(config.target_loss, math.log(2))  # chance is as unsure as can be
        self.epoch: list[Tensor] = []
        # at a strict target a node that is worth a small part of the usual price is needed all the same
        self.least_price = config.k_coef * min(1.0, math.sqrt(config.target_loss / USUAL_TARGET))
        self.k_coef, self.average_loss = self.least_price, config.target_loss
        self.best: tuple[int, Tensor] | None = None
        self._cut_to(among)
        self._temper()

    @property
    def n_kept(self) -> int:
        return int((self.tau > 0).sum())

    def step(self, step: int) -> float:
        """One optimiser step on a random batch of pairs; the batch's task loss in nats."""
        gates = gates_of(self.tau, self.config.temperature)
        loss = self._task_loss(self._batch(), gates)
        gradients = torch.autograd.grad(loss + self.k_coef * self._size(gates), [self.tau, self.fit])
        value = float(loss.detach())
        if value < self.ease:
            gradients[1][0].neg_()
        gradients = (self._tied(gradients[0]), gradients[1])
        lr = self.config.lr * self._schedule(step)
        for adam, gradient in zip(self.adam, clipped(gradients), strict=True):
            adam.step(gradient, lr)
        with torch.no_grad():
            self.tau.clamp_(-1, 1)
            if self.config.max_scale is not None:
                self.fit[0].clamp_(max=math.log(self.config.max_scale))
        self._steer(value)
        return value

    def _tied(self, flat: Tensor) -> Tensor:
        """flat (N,), with `tie_qk` averaged over each pair of a query and a key channel: like starts and like
        gradients keep both masks the same."""
        parts = self.index.split(flat)
        for site in parts if self.config.tie_qk else ():
            if site.endswith("attn.q"):
                key = site.removesuffix("q") + "k"
                parts[site] = parts[key] = (parts[site] + parts[key]) / 2
        return torch.cat(list(parts.values()))

    def _temper(self) -> None:
        """Start from a scale at which the whole model is no surer of its answers than `ease`."""
        with torch.no_grad():
            batch = self._batch()
            margins = self.compact.margins(batch)
            while float(task_loss(margins, batch.sides, Calibration(float(self.fit[0].exp())))) < self.ease:
                self.fit[0] -= 0.1

    def retire(self) -> None:
        """Cut nodes that are off and still falling out of the forward pass, once a tenth of those in it are.

        When a model does its task with ease, all nodes fall together until one too many is off. Those that the task
        then asks back must not be lost for having been as low as the rest, hence the look at the direction.
        """
        falling = (self.tau.detach() <= -self.config.retire) & (self.adam[0].first > 0)
        alive = self.alive & ~falling
        if int(alive.sum()) <= 0.9 * self.n_alive:
            self._cut_to(alive)

    def rescue(self) -> None:
        """Remember the fewest nodes that did the task; go back to them when the task breaks down.

        With several nodes of a chain off at once none of them has a gradient, so nothing else would bring them back.
        """
        target = self.config.target_loss
        if self.average_loss <= target and (self.best is None or self.n_kept < self.best[0]):
            self.best = self.n_kept, self.tau.detach().clone()
        elif self.best is not None and self.average_loss > (target + math.log(2)) / 2:
            with torch.no_grad():
                self.tau.copy_(self.best[1])
            self.adam[0] = Adam(self.tau, self.config.beta2, self.config.weight_decay)
            self.k_coef, self.average_loss = self.least_price, target
            self._cut_to(self.tau.detach() > -self.config.retire)

    def _cut_to(self, alive: Tensor) -> None:
        channels = self.index.channels(alive)
        self.alive, self.n_alive = alive, sum(map(len, channels.values()))
        self.compact = AblatedModel(self.model, self.means, channels)
        self.ends = edge_ends(self.model, channels, self.index.first)[:2]

    def _size(self, gates: Tensor) -> Tensor:
        """Kept nodes; `edge_price` of it is their edges instead, in units that leave the mean price of a node as is."""
        nodes, share = gates.sum(), self.config.edge_price
        edges = (gates[self.ends[0]] * gates[self.ends[1]]).sum()
        unit = (nodes / (2 * edges).clamp_min(1)).detach()
        return (1 - share) * nodes + share * unit * edges

    def _task_loss(self, batch: AnswerBatch, gates: Tensor) -> Tensor:
        margins = self.compact.margins(batch, self.index.split(gates))
        return F.softplus(-(self.fit[0].exp() * margins + self.fit[1] * batch.sides)).mean()

    def _batch(self) -> AnswerBatch:
        """Random pairs of about the same length: padded to their longest, others would be mostly padding."""
        if not self.epoch:
            longest = self.data.length.view(-1, 2).amax(1).double()
            noisy = longest + 4 * torch.rand(len(longest), generator=self.generator, dtype=torch.float64)
            parts = torch.split(noisy.argsort(), self.config.batch_pairs)
            self.epoch = [parts[i] for i in torch.randperm(len(parts), generator=self.generator)]
        return pair_batch(self.data, self.epoch.pop(), self.device)

    def _schedule(self, step: int) -> float:
        """Linear warm-up, then linear decay to 0."""
        warmup = max(1, round(self.config.warmup * self.config.steps))
        return min((step + 1) / warmup, (self.config.steps - step) / max(1, self.config.steps - warmup))

    def _steer(self, loss: float) -> None:
        """Raise the price of a node while the loss is below the target, lower it again while it is above."""
        self.average_loss += 0.2 * (loss - self.average_loss)
        error = math.log(self.config.target_loss / self.average_loss)
        price = self.k_coef * math.exp(self.config.steer * max(-2.0, min(2.0, error)))
        self.k_coef = max(price, self.least_price)
