"""One sparse optimiser step (METHOD 3): gradient scaling, AdamW, projection; and the sharkfin learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparse_model.config import TrainConfig
from sparse_model.model import SparseTransformer
from sparse_model.sparsity import anneal_progress, count_nonzero, project, projected_groups


class SparseOptimizer:
    """AdamW followed by the projection. Gradients and moments stay dense, so a zeroed weight can return."""

    def __init__(self, model: SparseTransformer, recipe: TrainConfig, n_steps: int) -> None:
        self.recipe, self.n_steps = recipe, n_steps
        self.groups = projected_groups(model, recipe)
        self.named = dict(model.named_parameters())
        decayed = [p for name, p in self.named.items() if name != "bigram"]
        tables = [p for name, p in self.named.items() if name == "bigram"]
        parameters: list[dict[str, Any]] = [{"params": decayed}]
        if tables:
            parameters.append({"params": tables, "weight_decay": 0.0})
        self.adamw = torch.optim.AdamW(
            parameters, recipe.lr, recipe.betas, recipe.eps, weight_decay=recipe.weight_decay, fused=True
        )

    def step(self, step: int) -> float:
        """Update the weights from their gradients as optimiser step `step` (0-based); returns the gradient's RMS."""
        rms = scale_gradients(list(self.named.values()), self.recipe)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate(step, self.n_steps, self.recipe)
        self.adamw.step()
        self.adamw.zero_grad()
        project(self.groups, anneal_progress(step + 1, self.n_steps, self.recipe.anneal))
        return rms

    def l0(self) -> int:
        """Nonzeros among the projected tensors."""
        return count_nonzero(self.groups)

    def state(self) -> dict[str, Tensor]:
        """Flat tensors of the moments and step counts, named by parameter; empty before the first step."""
        return {
            f"{key}.{name}": value
            for name, p in self.named.items()
            for key, value in self.adamw.state.get(p, {}).items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave. Raises KeyError naming a tensor that is missing."""
        for name, p in self.named.items():
            self.adamw.state[p] = {key: state[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}


def scale_gradients(parameters: list[torch.nn.Parameter], recipe: TrainConfig) -> float:
    """Normalise or clip, in place, by the RMS over all entries of all gradients; returns the RMS before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    size = sum(g.numel() for g in gradients)
    rms = float(torch.nn.utils.get_total_norm(gradients)) / math.sqrt(size)
    if recipe.gradient == "normalize":
        torch._foreach_mul_(gradients, 1 / (rms + 1e-5))
    elif recipe.gradient == "clip" and rms > 1:
        torch._foreach_mul_(gradients, 1 / rms)
    return rms


def learning_rate(step: int, n_steps: int, recipe: TrainConfig) -> float:
    """Learning rate of a step: warm-up, linear decay, and the sharkfin factor, which is 1 at the target sparsity."""
    warmup_steps = max(1, round(recipe.warmup * n_steps)) if recipe.warmup else 0
    lr = recipe.lr
    if step < warmup_steps:
        lr *= (step + 1) / warmup_steps
    elif recipe.lr_decay:
        lr *= (n_steps - step) / (n_steps - warmup_steps)
    if recipe.sharkfin:
        progress = anneal_progress(step, n_steps, recipe.anneal)
        lr *= math.sqrt(recipe.fraction / (1 + progress * (recipe.fraction - 1)))
    return lr
