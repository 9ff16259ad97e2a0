"""How a model is trained. `train` is the table of contents; it runs alone or in each worker of a process group.

Shapes: B sequences, T context; a batch of tokens is (B, T + 1).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sparse_model.checkpoint import CheckpointStore, Metrics, NoCheckpoints
from sparse_model.config import ModelConfig, TrainConfig
from sparse_model.data.loader import TokenDataset
from sparse_model.errors import InputError
from sparse_model.measures import evaluate, flops_per_token
from sparse_model.model import SparseTransformer
from sparse_model.optimizer import SparseOptimizer, learning_rate
from sparse_model.sparsity import check_budget

Report = Callable[[Metrics], None]


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run: the model, how it ended, and its last figures."""

    model: SparseTransformer
    status: Literal["ok", "diverged"]
    reason: str
    metrics: Metrics


def train(
    model_config: ModelConfig,
    recipe: TrainConfig,
    data: TokenDataset,
    *,
    checkpoints: CheckpointStore | None = None,
    report: Report = lambda metrics: None,
    device: str | torch.device = "cpu",
) -> TrainResult:
    """Train a model on the tokens of `data`, from its newest checkpoint if there is one (METHOD 3).

    In a process group every worker calls this alike; each sees its rows of every batch, and all end with the same
    weights. `report` is called every `log_every` steps on every worker. Raises InputError for a recipe that cannot be.
    """
    check(model_config, recipe, data)
    store = checkpoints or NoCheckpoints()
    run = Run(model_config, recipe, data, torch.device(device))
    store.restore(run.load)
    for step in range(run.step, run.n_steps):
        run.optimise(step)
        if run.due(recipe.log_every):
            report(run.log())
            if run.diverged:
                return run.result(run.metrics)
        if run.due(recipe.eval_every):
            report(run.validate())
        if run.due(recipe.checkpoint_every):
            store.save(run.step, run.metrics, run.save)
    return run.result(run.validate())


def check(model_config: ModelConfig, recipe: TrainConfig, data: TokenDataset) -> None:
    """Refuse, before anything is computed, what cannot be trained."""
    check_budget(model_config, recipe)
    if data.tokenizer.vocab_size != model_config.vocab_size:
        raise InputError(
            f"vocab_size {model_config.vocab_size}; the data's tokenizer has {data.tokenizer.vocab_size} tokens"
        )
    if recipe.batch_size % world_size():
        raise InputError(f"batch_size {recipe.batch_size}; must be divisible by the {world_size()} workers")


def world_size() -> int:
    """Workers in the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This worker's number; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


class Run:
    """A training run between two steps: everything a checkpoint holds, and what is derived from it."""

    def __init__(
        self, model_config: ModelConfig, recipe: TrainConfig, data: TokenDataset, device: torch.device
    ) -> None:
        self.recipe, self.data, self.device = recipe, data, device
        self.n_steps = recipe.n_steps(model_config.context)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.model = SparseTransformer(model_config, getattr(torch, recipe.dtype)).to(device)
        self.parallel = DistributedDataParallel(self.model) if world_size() > 1 else self.model
        self.optimizer = SparseOptimizer(self.model, recipe, self.n_steps)
        self.step, self.seconds, self.reason = 0, 0.0, ""
        self.metrics: Metrics = {}
        self._reset_window()

    def optimise(self, step: int) -> None:
        """One optimiser step on this worker's rows of the global batch."""
        if not self.window_steps:
            self.window_start = time.monotonic()
        tokens = self._batch(step)
        loss = self.parallel(tokens[:, :-1], targets=tokens[:, 1:])
        loss.backward()
        self.optimizer.step(step)
        self.window_loss += loss.detach()
        self.window_steps += 1
        self.step = step + 1

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; the last step is `result`'s."""
        return self.step % every == 0 or self.step == self.n_steps

    def log(self) -> Metrics:
        """Figures of the steps since the last log; finds divergence."""
        window = self.window_loss.clone()
        if dist.is_initialized():
            dist.all_reduce(window)
        now = time.monotonic()
        seconds = now - self.window_start
        self.seconds += seconds
        T = self.model.config.context
        self.metrics |= {
            "step": self.step,
            "steps": self.n_steps,
            "tokens": self.step * self.recipe.batch_size * T,
            "train_loss": float(window) / (self.window_steps * world_size()),
            "lr": learning_rate(self.step - 1, self.n_steps, self.recipe),
            "l0": self.optimizer.l0(),
            "tokens_per_second": self.window_steps * self.recipe.batch_size * T / seconds,
            "train_seconds": self.seconds,
        }
        self._find_divergence()
        self._reset_window()
        return self.metrics

    def validate(self) -> Metrics:
        """Figures on held-out tokens."""
        self.metrics |= evaluate(self.model, self._heldout())
        return self.metrics

    def result(self, metrics: Metrics) -> TrainResult:
        """The end of the run, with what describes the whole of it."""
        metrics = metrics | {
            "total_params": sum(p.numel() for p in self.model.parameters()),
            "flops": flops_per_token(self.model.config) * metrics["tokens"],
        }
        return TrainResult(self.model, "diverged" if self.reason else "ok", self.reason, metrics)

    @property
    def diverged(self) -> bool:
        """Whether the last logged loss showed that training has failed."""
        return bool(self.reason)

    def save(self, folder: Path) -> None:
        """Write the whole state into a folder: tensors as safetensors, the rest as JSON."""
        weights = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        save_file(weights | self.optimizer.state(), folder / "state.safetensors")
        progress = {"run": self._identity(), "step": self.step, "seconds": self.seconds, "metrics": self.metrics}
        window = {"loss": self.window_loss.item(), "steps": self.window_steps}
        (folder / "progress.json").write_text(json.dumps(progress | {"window": window}))

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, to the same weights bit for bit."""
        progress = json.loads((folder / "progress.json").read_text())
        if progress["run"] != self._identity():
            raise InputError("it is of a run with another configuration")
        tensors = load_file(folder / "state.safetensors", device=str(self.device))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        self.optimizer.load_state(tensors)
        self.step, self.seconds, self.metrics = progress["step"], progress["seconds"], progress["metrics"]
        self.window_loss.fill_(progress["window"]["loss"])
        self.window_steps = progress["window"]["steps"]

    def _identity(self) -> dict[str, object]:
        return {"model": self.model.config.model_dump(mode="json"), "recipe": self.recipe.model_dump(mode="json")}

    def _batch(self, step: int) -> Tensor:
        recipe, T = self.recipe, self.model.config.context
        rows = self.data.batch(
            "train",
            step,
            batch_size=recipe.batch_size,
            context=T,
            seed=recipe.seed,
            rank=rank(),
            world=world_size(),
        )
        return torch.from_numpy(rows).to(self.device, non_blocking=True)

    def _heldout(self) -> Iterator[Tensor]:
        recipe = self.recipe
        batches = self.data.heldout_batches(recipe.batch_size, self.model.config.context, recipe.eval_tokens)
        for i, batch in enumerate(batches):
            if i % world_size() == rank():
                yield torch.from_numpy(batch).to(self.device)

    def _reset_window(self) -> None:
        self.window_loss = torch.zeros((), device=self.device)
        self.window_steps = 0
        self.window_start = time.monotonic()

    def _find_divergence(self) -> None:
        loss, ceiling = self.metrics["train_loss"], 2 * math.log(self.model.config.vocab_size)
        if not math.isfinite(loss):
            self.reason = f"training loss is {loss} at step {self.step}"
        elif loss > ceiling:
            self.reason = f"training loss {loss:.2f} at step {self.step} is over twice that of guessing"
