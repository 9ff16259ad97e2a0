"""One sparse optimiser step (METHOD 3): gradient scaling, AdamW, projection; and the sharkfin learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparse_model.distributed.sharding import held, held_parameter, is_sharded, sharded_like
from sparse_model.distributed.workers import summed
from sparse_model.model.config import TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.sparsity.projection import anneal_progress, count_nonzero, project, projected_groups
from sparse_model.sparsity.shard_projection import project_shards


class SparseOptimizer:
    """AdamW followed by the projection. Gradients and moments stay dense, so a zeroed weight can return.

    Of a sharded model it sees what this worker holds of each parameter; see `sharding`.
    """

    def __init__(self, model: SparseTransformer, recipe: TrainConfig, n_steps: int) -> None:
        self.recipe, self.n_steps = recipe, n_steps
        self.groups = projected_groups(model, recipe)
        self.sharded = is_sharded(model)
        self.named = dict(model.named_parameters())
        self.held = {name: held_parameter(p) for name, p in self.named.items()}
        decayed = [p for name, p in self.held.items() if name != "bigram"]
        tables = [p for name, p in self.held.items() if name == "bigram"]
        parameters: list[dict[str, Any]] = [{"params": decayed}]
        if tables:
            parameters.append({"params": tables, "weight_decay": 0.0})
        self.adamw = torch.optim.AdamW(
            parameters, recipe.lr, recipe.betas, recipe.eps, weight_decay=recipe.weight_decay, fused=True
        )

    def step(self, step: int) -> float:
        """Update the weights from their gradients as optimiser step `step` (0-based); returns the gradient's RMS."""
        if self.sharded:
            self._take_gradients()
        rms = scale_gradients(list(self.held.values()), self.recipe, self.sharded)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate(step, self.n_steps, self.recipe)
        self.adamw.step()
        self.adamw.zero_grad()
        (project_shards if self.sharded else project)(
            self.groups, anneal_progress(step + 1, self.n_steps, self.recipe.anneal)
        )
        return rms

    def l0(self) -> int:
        """Nonzeros among the projected tensors."""
        if not self.sharded:
            return count_nonzero(self.groups)
        return int(summed(torch.stack([held(group.weight).count_nonzero() for group in self.groups]).sum()))

    def state(self) -> dict[str, Tensor]:
        """The moments themselves, named by parameter and sharded as these are; zeros before the first step."""
        return {
            f"{key}.{name}": sharded_like(self._state_of(p)[key], self.named[name])
            for name, p in self.held.items()
            for key in ("exp_avg", "exp_avg_sq")
        }

    def continue_from(self, step: int) -> None:
        """Take the moments for those after so many steps."""
        for p in self.held.values():
            self._state_of(p)["step"].fill_(step)

    def _state_of(self, p: torch.nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.adamw.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        return state

    def _take_gradients(self) -> None:
        """Hand this worker's rows of the gradients, averaged over workers by the backward pass, to its own parts."""
        for name, p in self.named.items():
            self.held[name].grad = None if p.grad is None else held(p.grad)
            p.grad = None


def scale_gradients(parameters: list[torch.nn.Parameter], recipe: TrainConfig, sharded: bool = False) -> float:
    """Normalise or clip, in place, by the RMS over all entries of all gradients; returns the RMS before.

    Where each worker holds its own shards of the gradients, it is that over the shards of all workers.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    size = sum(g.numel() for g in gradients)
    norm = torch.nn.utils.get_total_norm(gradients)
    if sharded:
        squares, sizes = summed(torch.stack([norm.double() ** 2, norm.new_tensor(size).double()])).tolist()
        rms = math.sqrt(squares / sizes)
    else:
        rms = float(norm) / math.sqrt(size)
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
