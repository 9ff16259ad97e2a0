"""Learning which nodes to keep (METHOD 6, mask learning).

One parameter tau per node, in one flat vector (N,) over all sites; a node is kept where tau > 0. The loss is the
two-way cross-entropy plus k_coef per kept node, and tau follows its gradient through the step
function as if that were a sigmoid of temperature T.

Where this differs from the paper: what a node costs goes mostly by its edges, and rises while the loss is below the
target (`Price`). Nodes whose tau is below zero and falling are *retired*: they stay ablated, and the forward pass is
cut down to what is left (`AblatedModel`). Two guards keep the task from breaking down on the way (`Ease`, `Rescue`).
With `ablation: subsets` every second step leaves a random part of the nodes that are off their own values, of each
pair another part: what is learned then cannot lean on all of them being at their means at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import compress

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.ablated.batches import AnswerBatch
from circuit.ablated.compact import AblatedModel, Gates
from circuit.ablated.nodes import NodeIndex
from circuit.graph.edges import edge_ends
from circuit.search.config import PruneConfig
from circuit.search.learning import Adam, BatchOrder, Ease, Price, Rescue, clipped, gates_of, schedule
from circuit.search.watch import SILENT, Watch
from circuit.tasks import PairBatch
from sparse_model.model.transformer import SparseTransformer

SNAPSHOT_STEPS = 10
"""Steps between the states among which the best is chosen."""

HOPELESS = 3.0
"""Times the target that the running loss of a state may be for it to be tried on all prompts, and"""

HOPEFUL = 0.1
"""a running loss, in nats, at which it always is: one that gets every prompt right can be calibrated to any loss."""

SHARE_IN_SUBSETS = 0.5
"""Of the target, where nodes are learned for it in subsets: a mean at the target leaves single subsets far above it."""

RETIRED_AT = 0.9
"""Share of the nodes in the forward pass that may be left before it is cut down to them."""


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
            near.append(learner.price.loss <= max(HOPEFUL, HOPELESS * config.target_loss))
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
    """The masks, the fit of the logits that is learned along with them, and the forward pass they are in."""

    def __init__(
        self, model: SparseTransformer, data: PairBatch, means: Means, config: PruneConfig, among: Tensor | None
    ) -> None:
        self.model, self.means, self.config = model, means, config
        self.index = NodeIndex(model)
        device = model.embedding.device
        self.generator = torch.Generator().manual_seed(config.seed)
        noise = torch.randn(self.index.total, generator=self.generator) * config.init_noise
        tau = self._tied((config.init_bias + noise).clamp(-1, 1).to(device))
        among = torch.ones_like(tau, dtype=torch.bool) if among is None else among
        self.tau = tau.masked_fill(~among, -1).requires_grad_()
        # the logits' scale (its logarithm) and shift are learned along, as bisection will fit them
        self.fit = torch.zeros(2, device=device, requires_grad=True)
        self.adam = [Adam(self.tau, config.beta2, config.weight_decay), Adam(self.fit, config.beta2, 0.0)]
        self.order = BatchOrder(data, config.batch_pairs, self.generator, device)
        self.price, self.ease, self.guard = Price(config), Ease(config.target_loss), Rescue(config.target_loss)
        self.share = SHARE_IN_SUBSETS if config.ablation == "subsets" else 1.0
        self._cut_to(among)
        batch = self.order.next()
        self.ease.temper(self.fit, self.compact.margins(batch), batch.sides)

    @property
    def n_kept(self) -> int:
        return int((self.tau > 0).sum())

    def step(self, step: int) -> float:
        """One optimiser step on a random batch of pairs; the batch's task loss in nats."""
        gates = gates_of(self.tau, self.config.temperature)
        subset = self.config.ablation == "subsets" and step % 2 == 1
        batch = self.order.next()
        loss = self._task_loss(batch, gates, self._left_alone(len(batch.sides)) if subset else None)
        gradients = torch.autograd.grad(loss + self.price.of(gates, self.ends), [self.tau, self.fit])
        value = float(loss.detach())
        self.ease.turn(gradients[1], value)
        gradients = (self._tied(gradients[0]), gradients[1])
        lr = self.config.lr * schedule(step, self.config)
        for adam, gradient in zip(self.adam, clipped(gradients), strict=True):
            adam.step(gradient, lr)
        with torch.no_grad():
            self.tau.clamp_(-1, 1)
            if self.config.max_scale is not None:
                self.fit[0].clamp_(max=math.log(self.config.max_scale))
        self.price.steer(value / self.share)
        return value

    def retire(self) -> None:
        """Cut nodes that are off and still falling out of the forward pass, once a tenth of those in it are.

        When a model does its task with ease, all nodes fall together until one too many is off. Those that the task
        then asks back must not be lost for having been as low as the rest, hence the look at the direction.
        """
        falling = (self.tau.detach() <= -self.config.retire) & (self.adam[0].first > 0)
        alive = self.alive & ~falling
        if int(alive.sum()) <= RETIRED_AT * self.n_alive:
            self._cut_to(alive)

    def rescue(self) -> None:
        """Go back to the fewest nodes that did the task where it has broken down."""
        best = self.guard.after(self.tau.detach(), self.n_kept, self.price.loss)
        if best is not None:
            with torch.no_grad():
                self.tau.copy_(best)
            self.adam[0] = Adam(self.tau, self.config.beta2, self.config.weight_decay)
            self.price = Price(self.config)
            self._cut_to(self.tau.detach() > -self.config.retire)

    def _tied(self, flat: Tensor) -> Tensor:
        """With `tie_qk`, like starts and like gradients keep the masks of a query and its key channel the same."""
        return self.index.tied(flat) if self.config.tie_qk else flat

    def _cut_to(self, alive: Tensor) -> None:
        channels = self.index.channels(alive)
        self.alive, self.n_alive = alive, sum(map(len, channels.values()))
        self.compact = self._compact(alive)
        self.ends = edge_ends(self.model, channels, self.index.first)[:2]

    def _compact(self, alive: Tensor) -> AblatedModel:
        return AblatedModel(self.model, self.means, self.index.channels(alive))

    @cached_property
    def _whole(self) -> AblatedModel:
        return self._compact(torch.ones_like(self.alive))

    def _left_alone(self, prompts: int) -> Tensor:
        """(B, N) nodes with their own values, whether they are on or off: of each pair a random subset of any size."""
        share = torch.rand(prompts // 2, 1, generator=self.generator)
        left = torch.rand(prompts // 2, len(self.tau), generator=self.generator) < share
        return left.repeat_interleave(2, 0).to(self.tau.device)

    def _task_loss(self, batch: AnswerBatch, gates: Tensor, rest: Tensor | None) -> Tensor:
        """Of the nodes that are on and, if they are given, of each prompt the `rest` (B, N)."""
        compact = self.compact
        if rest is not None:
            gates, compact = torch.where(rest, 1.0, gates), self._whole
        margins = compact.margins(batch, Gates(self.index.split(gates)))
        return F.softplus(-(self.fit[0].exp() * margins + self.fit[1] * batch.sides)).mean()
