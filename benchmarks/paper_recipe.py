"""The paper's pruning recipe done plainly (METHOD 6): what `circuit` is measured against, and checked with.

Slow on purpose and independent of the search in `circuit`: every step runs the whole model over prompts padded to the
longest of the task and computes the logits of all tokens at all positions; the number of steps is fixed; nodes are
pruned, and nothing is eliminated after bisection.

Shapes: B prompts, T tokens of the longest, C channels of a site, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.tasks import PairBatch
from sparse_model.model.transformer import SparseTransformer

Gates = dict[str, Tensor]
"""Site name -> (C,) how much of each node's own value passes; the rest is its mean."""

Taus = dict[str, Tensor]
"""Site name -> (C,) mask parameters; a node is kept where its own is above 0."""

Forward = Callable[[Tensor, Gates], Tensor]
"""Called with rows of the task's prompts and the gates of every site: their margins, in the order of the rows."""

TUNED = ("k_coef", "lr", "weight_decay", "beta2_gap", "init_noise")


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of mask learning; the defaults are the centres of the paper's search (METHOD 6)."""

    k_coef: float = 1e-4
    lr: float = 3e-3
    weight_decay: float = 1e-3
    beta2_gap: float = 5e-2
    init_noise: float = 1e-2
    init_bias: float = 0.1
    warmup: float = 0.05
    temperature: float = 1.0
    steps: int = 2000
    batch_pairs: int = 64
    seed: int = 0

    def shortened(self, steps: int) -> Settings:
        """Fewer steps, each longer in proportion: masks can move as far as they could."""
        return replace(self, steps=steps, lr=self.lr * self.steps / steps)

    def varied(self, rng: random.Random) -> Settings:
        """Another point of the search: every tuned value up to 10 times larger or smaller, k_coef up to 30 times."""
        factors = {name: math.exp(rng.uniform(-1, 1) * math.log(30 if name == "k_coef" else 10)) for name in TUNED}
        changed = {name: getattr(self, name) * factor for name, factor in factors.items()}
        return replace(self, **changed | {"beta2_gap": min(0.5, changed["beta2_gap"])})


@dataclass(frozen=True)
class Found:
    """What one run of the recipe ends with: kept channels by site, its edges, its calibrated loss (nats), and how many
    losses bisection took. Without nodes where not even the whole model reaches the target."""

    kept: dict[str, Tensor] | None
    edges: int | None
    loss: float
    evaluations: int


class SigmoidStep(torch.autograd.Function):
    """Heaviside step whose derivative is taken to be that of a sigmoid of temperature T."""

    @staticmethod
    def forward(ctx: Any, tau: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(tau / temperature)
        ctx.temperature = temperature
        return (tau > 0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return grad * torch.sigmoid(z) * torch.sigmoid(-z) / ctx.temperature, None


def run(
    model: SparseTransformer, data: PairBatch, means: Means, target: float, settings: Settings, forward: Forward
) -> Found:
    """Learn masks, order nodes by them, bisect for the fewest that reach the target. `forward`: `plain_forward`, or
    something that gives the same margins sooner."""
    taus = learn(data, means, settings, forward)
    kept, loss, evaluations = bisect(data, taus, target, forward)
    edges = None if kept is None else count_edges(model, kept)
    return Found(kept, edges, loss, evaluations)


def learn(data: PairBatch, means: Means, settings: Settings, forward: Forward) -> Taus:
    """Mask parameters after `settings.steps` steps."""
    generator = torch.Generator().manual_seed(settings.seed)
    taus = {}
    for name, mean in means.items():
        noise = settings.init_noise * torch.randn(mean.shape, generator=generator)
        taus[name] = (settings.init_bias + noise).clamp(-1, 1).to(mean.device).requires_grad_()
    optimizer = torch.optim.AdamW(
        taus.values(), lr=settings.lr, betas=(0.9, 1 - settings.beta2_gap), weight_decay=settings.weight_decay
    )
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _schedule(step, settings)
        pairs = torch.randperm(data.n_pairs, generator=generator)[: settings.batch_pairs]
        rows = torch.stack([2 * pairs, 2 * pairs + 1], 1).flatten()
        gates = {name: SigmoidStep.apply(tau, settings.temperature) for name, tau in taus.items()}
        loss = F.softplus(-forward(rows, gates)).mean() + settings.k_coef * sum(gate.sum() for gate in gates.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(taus.values(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for tau in taus.values():
                tau.clamp_(-1, 1)
    return {name: tau.detach() for name, tau in taus.items()}


def _schedule(step: int, settings: Settings) -> float:
    warmup = max(1, round(settings.warmup * settings.steps))
    return min((step + 1) / warmup, (settings.steps - step) / max(1, settings.steps - warmup))


def plain_forward(model: SparseTransformer, data: PairBatch, means: Means) -> Forward:
    """All logits at all positions of padded prompts; of these, right - wrong at the answer positions."""
    device = model.embedding.device

    def forward(rows: Tensor, gates: Gates) -> Tensor:
        tokens = data.tokens[rows].to(device)
        logits = model(tokens, lambda name, x: means[name] + gates[name] * (x - means[name]))
        answers = logits[torch.arange(len(rows), device=device), data.length[rows].to(device) - 1]
        right, wrong = (answers.gather(1, ids[rows, None].to(device)) for ids in (data.right, data.wrong))
        return (right - wrong).squeeze(1)

    return forward


def bisect(data: PairBatch, taus: Taus, target: float, forward: Forward) -> tuple[dict[str, Tensor] | None, float, int]:
    """The fewest nodes of highest tau that reach the target, their loss, and how many losses that took."""
    flat = torch.cat(list(taus.values()))
    order = flat.argsort(descending=True, stable=True)

    def first(count: int) -> dict[str, Tensor]:
        keep = torch.zeros_like(flat).index_fill(0, order[:count], 1)
        return dict(zip(taus, keep.split([len(tau) for tau in taus.values()]), strict=True))

    losses = {len(flat): calibrated_loss(data, first(len(flat)), forward)}
    low, high = 0, len(flat)
    if losses[high] > target:
        return None, losses[high], len(losses)
    while low < high:
        middle = (low + high) // 2
        losses[middle] = calibrated_loss(data, first(middle), forward)
        low, high = (low, middle) if losses[middle] <= target else (middle + 1, high)
    return {name: gate.nonzero().flatten() for name, gate in first(high).items()}, losses[high], len(losses)


def calibrated_loss(data: PairBatch, gates: Gates, forward: Forward) -> float:
    """Loss in nats over all prompts after 16 L-BFGS steps on a scale and a shift of the answers' logits."""
    with torch.no_grad():
        rows = torch.arange(len(data.length)).split(128)
        margins = torch.cat([forward(part, gates) for part in rows]).double().cpu()
    sides = torch.where(data.right < data.wrong, 1.0, -1.0).double()
    fit = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([fit], max_iter=16, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        return F.softplus(-(fit[0] * margins + fit[1] * sides)).mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return float(loss().detach())


def count_edges(model: SparseTransformer, kept: dict[str, Tensor]) -> int:
    """Nonzero weights between kept nodes in the query-key-value, output, up and down matrices."""
    total = 0
    for i, layer in enumerate(model.layers):
        q, k, v = layer.attn.qkv.weight.chunk(3)
        for weight, source, target in (
            (q, "attn.in", "attn.q"),
            (k, "attn.in", "attn.k"),
            (v, "attn.in", "attn.v"),
            (layer.attn.out.weight, "attn.v", "attn.out"),
            (layer.mlp.up.weight, "mlp.in", "mlp.act"),
            (layer.mlp.down.weight, "mlp.act", "mlp.out"),
        ):
            sources, targets = kept[f"layers.{i}.{source}"], kept[f"layers.{i}.{target}"]
            total += int(weight[targets][:, sources].count_nonzero())
    return total
