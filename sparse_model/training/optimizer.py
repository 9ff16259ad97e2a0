"""One sparse optimiser step (METHOD 3): gradient scaling, AdamW, projection; and the sharkfin learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparse_model.distributed.sharding import held, held_parameter, is_sharded, sharded_like
from sparse_model.distributed.workers import summed
from sparse_model.model.config import TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.sparsity.projection import anneal_progress, count_nonzero, project, projected_groups


class SparseOptimizer:
    """AdamW followed by the projection. Gradients and moments stay dense, so a zeroed weight can return.

    Of a sharded model it sees what this worker holds of each parameter; see `sharding`. A step asks the device nothing.
    With `capturable`, what `update` does to a GPU's weights can be recorded as a CUDA graph.
    """

    def __init__(self, model: SparseTransformer, recipe: TrainConfig, n_steps: int, capturable: bool = False) -> None:
        self.recipe, self.n_steps = recipe, n_steps
        self.groups = projected_groups(model, recipe)
        self.sharded = is_sharded(model)
        self.named = dict(model.named_parameters())
        self.held = {name: held_parameter(p) for name, p in self.named.items()}
        vectors_too = recipe.decay == "all"
        decays = {name for name, p in self.named.items() if name != "bigram" and (vectors_too or p.dim() > 1)}
        self.rows = RowGradient(self.held.get("bigram"))
        kept = [p for name, p in self.held.items() if name not in decays]
        parameters: list[dict[str, Any]] = [{"params": [self.held[name] for name in self.named if name in decays]}]
        if kept:
            parameters.append({"params": kept, "weight_decay": 0.0})
        # a number would be recorded in the graph as it is at that moment
        lr = torch.tensor(recipe.lr, device=model.embedding.device) if capturable else recipe.lr
        self.adamw = torch.optim.AdamW(
            parameters,
            lr,
            recipe.betas,
            recipe.eps,
            weight_decay=recipe.weight_decay,
            fused=True,
            capturable=capturable,
        )

    def step(self, step: int) -> Tensor:
        """Update the weights from their gradients as optimiser step `step`, from 0 on; gives the gradient's RMS."""
        self.set_learning_rate(step)
        rms = self.update()
        self.project(step)
        return rms

    def set_learning_rate(self, step: int) -> None:
        """Take the learning rate of a step."""
        lr = learning_rate(step, self.n_steps, self.recipe)
        for group in self.adamw.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def update(self) -> Tensor:
        """Scale the gradients, let AdamW take them, and drop them; gives their RMS before, on the device."""
        if self.sharded:
            self._take_gradients()
        names = [group.name for group in self.groups] if self.recipe.rms_over == "projected" else list(self.held)
        judged = {name: self.held[name] for name in names}
        rms, divisor = gradient_scale(judged, self.named, self.recipe, self.sharded)
        # AdamW divides by it while it reads the gradients anyway
        self.adamw.grad_scale = divisor  # type: ignore[attr-defined]
        with self.rows.filled():
            self.adamw.step()
        self.adamw.zero_grad()
        return rms

    def project(self, step: int) -> None:
        """Zero what is over the budget after a step."""
        project(self.groups, anneal_progress(step + 1, self.n_steps, self.recipe.anneal))

    def l0(self) -> int:
        """Nonzeros among the projected tensors. Waits for the device."""
        return count_nonzero(self.groups)

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


class RowGradient:
    """The gradient of a table of which a batch sees few rows: a sparse tensor, but AdamW moves the moments of all rows.

    So it is put into a tensor of the whole that stays zero elsewhere, and of which only these rows are cleared again.
    """

    def __init__(self, table: torch.nn.Parameter | None) -> None:
        self.table = table
        self._whole: Tensor | None = None

    @contextmanager
    def filled(self) -> Iterator[None]:
        """While it lasts the table's gradient is a whole tensor."""
        rows = None if self.table is None else self.table.grad
        if self.table is None or rows is None or not rows.is_sparse:
            yield
            return
        rows = rows.coalesce()
        seen = rows.indices()[0]
        if self._whole is None:
            self._whole = torch.zeros_like(self.table)
        self.table.grad = self._whole.index_copy_(0, seen, rows.values())
        yield
        self._whole.index_fill_(0, seen, 0)


def gradient_scale(
    held: Mapping[str, Tensor], named: Mapping[str, Tensor], recipe: TrainConfig, sharded: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The RMS over all entries of these gradients, and what to divide all by for it to be normal or clipped.

    `held` are the parameters, by name, as this worker holds them, `named` as they are as a whole. Where each worker
    holds its own shards of the gradients, the RMS is that over the shards of all workers. Both stay on the device.
    """
    gradients = {name: p.grad for name, p in held.items() if p.grad is not None}
    size = sum(named[name].numel() for name in gradients)
    norm = torch.nn.utils.get_total_norm([g.coalesce().values() if g.is_sparse else g for g in gradients.values()])
    if sharded:
        norm = summed(norm.double().square()).sqrt().float()
    rms = norm / math.sqrt(size)
    if recipe.gradient == "normalize":
        return rms, rms + 1e-5
    return rms, rms.clamp_min(1) if recipe.gradient == "clip" else None


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
