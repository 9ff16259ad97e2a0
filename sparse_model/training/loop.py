"""How a model is trained. `train` is the table of contents; it runs alone or in each worker of a process group.

Shapes: B sequences, T context; a batch of tokens is (B, T + 1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparse_model.cores import keep_freed_memory
from sparse_model.data.loader import TokenDataset
from sparse_model.distributed.sharding import is_sharded, sharded_model
from sparse_model.distributed.workers import Parallel, gathered, rank, summed, world_size
from sparse_model.errors import InputError
from sparse_model.model.config import RUN_ONLY, SECTIONS, ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.sparsity.projection import check_budget
from sparse_model.training.batches import Batches
from sparse_model.training.checkpoint import CheckpointStore, NoCheckpoints, OtherRun, RunState, Tensors
from sparse_model.training.cuda_graph import RecordedWork, StepWork
from sparse_model.training.measures import evaluate, flops_per_token
from sparse_model.training.memory import rows_at_once
from sparse_model.training.optimizer import SparseOptimizer, learning_rate
from sparse_model.training.passes import Passes
from sparse_model.training.precision import ComputeType, resolved

Metrics = dict[str, float]
Report = Callable[[Metrics], None]


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run: the model (this worker's shard of it under fsdp), how it ended, its last figures, and its
    learning curve: a point for every log, with `CURVE` in it, validation figures where they were measured.

    `dtype` is the type of activations, which the recipe may have left open.
    """

    model: SparseTransformer
    status: Literal["ok", "diverged"]
    reason: str
    metrics: Metrics
    dtype: ComputeType
    curve: tuple[Metrics, ...] = ()


CURVE = {"tokens": "tokens", "train_loss": "train_loss", "lr": "lr", "l0": "l0", "train_seconds": "seconds"}
"""Figures of a log in a point of the learning curve, by their names there."""

LONGEST_CURVE = 2000
"""Points of a learning curve, which every checkpoint holds: of more, every second one goes."""


def train(
    model_config: ModelConfig,
    recipe: TrainConfig,
    data: TokenDataset,
    *,
    checkpoints: CheckpointStore | None = None,
    report: Report = lambda metrics: None,
    device: str | torch.device = "cpu",
    parallel: Parallel = "ddp",
) -> TrainResult:
    """Train a model on the tokens of `data`, from its newest checkpoint if there is one (METHOD 3).

    In a process group every worker calls this alike; each sees its rows of every batch, and all end with the same
    weights, or with their shards of them: `parallel` and the number of workers change results by rounding only, which
    grows over many steps as it does from one processor to another. `report` is called every
    `log_every` steps on every worker. Raises InputError for a recipe that cannot be, for checkpoints of another run
    (which stay as they are), and where storage fails.
    """
    check(model_config, recipe, data)
    keep_freed_memory()
    store = checkpoints or NoCheckpoints()
    run = Run(model_config, recipe, data, torch.device(device), parallel)
    if not store.restore(run.load) and run.touched:
        run = Run(model_config, recipe, data, torch.device(device), parallel)
    for step in range(run.step, run.n_steps):
        run.optimise(step)
        if run.due(recipe.log_every):
            report(run.log())
            if run.diverged:
                return run.result(run.metrics)
        if run.due(recipe.eval_every):
            report(run.validate())
        if run.due(recipe.checkpoint_every):
            store.save(run.step, run.progress(), run.tensors())
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
    if recipe.cuda_graph and world_size() > 1:
        raise InputError(f"cuda_graph true with {world_size()} workers; allowed: with one worker")


class Run:
    """A training run between two steps: everything a checkpoint holds, and what is derived from it."""

    def __init__(
        self,
        model_config: ModelConfig,
        recipe: TrainConfig,
        data: TokenDataset,
        device: torch.device,
        parallel: Parallel,
    ) -> None:
        self.data, self.device = data, device
        self.n_steps = recipe.n_steps(model_config.context)
        self.asked, self.kind = recipe, parallel
        self._build(model_config, resolved(recipe, device))
        self.step, self.seconds, self.reason = 0, 0.0, ""
        self.touched = False
        self.metrics: Metrics = {}
        self.curve: list[Metrics] = []
        self._reset_window()

    def _build(self, model_config: ModelConfig, recipe: TrainConfig) -> None:
        """Model and optimiser as they are before the first step of a recipe whose type is decided."""
        self.recipe = recipe
        dtype = getattr(torch, recipe.dtype)
        with torch.random.fork_rng(devices=[]):  # initial values are drawn on the CPU, whatever the device
            torch.default_generator.manual_seed(recipe.seed)
            if self.kind == "fsdp" and world_size() > 1:
                self.model = sharded_model(model_config, dtype, self.device)
            else:
                self.model = SparseTransformer(model_config, dtype).to(self.device)
        on_gpu = self.device.type == "cuda"
        if recipe.compile and on_gpu:
            for layer in self.model.layers:
                layer.compile()
        numel = sum(p.numel() for p in self.model.parameters())
        rows = rows_at_once(model_config, recipe, numel, self.kind, self.device)
        # workers that add up their gradients have different rows
        self.model.bigram_by_rows = self.device.type == "cpu" and world_size() == 1
        self.passes = Passes(self.model, rows, sharded=is_sharded(self.model))
        as_graph = recipe.cuda_graph and on_gpu
        self.optimizer = SparseOptimizer(self.model, recipe, self.n_steps, capturable=as_graph)
        self.optimizer.state()  # moments take their memory before any activations do
        self.work: StepWork = RecordedWork(self._learn) if as_graph else self._learn
        self.batches = Batches(self._rows, self.device)

    def optimise(self, step: int) -> None:
        """One optimiser step on this worker's rows of the global batch. Asks the device nothing."""
        if not self.window_steps:
            self.window_start = time.monotonic()
        self.optimizer.set_learning_rate(step)
        self.window_loss += self.work(self.batches.take(step))
        self.optimizer.project(step)
        if step + 1 < self.n_steps:
            self.batches.prepare(step + 1)
        self.window_steps += 1
        self.step = step + 1

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; the last step is `result`'s."""
        return self.step % every == 0 or self.step == self.n_steps

    def log(self) -> Metrics:
        """Figures of the steps since the last log; finds divergence."""
        window = float(summed(self.window_loss.clone()))  # waits for the steps, which so are in the time
        now = time.monotonic()
        seconds = now - self.window_start
        self.seconds += seconds
        T = self.model.config.context
        self.metrics |= {
            "step": self.step,
            "steps": self.n_steps,
            "tokens": self.step * self._tokens_per_step,
            "train_loss": window / (self.window_steps * world_size()),
            "lr": learning_rate(self.step - 1, self.n_steps, self.recipe),
            "l0": self.optimizer.l0(),
            "tokens_per_second": self.window_steps * self.recipe.batch_size * T / seconds,
            "train_seconds": self.seconds,
        }
        self.curve.append({"step": self.step} | {name: self.metrics[figure] for figure, name in CURVE.items()})
        if len(self.curve) > LONGEST_CURVE:
            del self.curve[:-1:2]
        self._find_divergence()
        self._reset_window()
        return self.metrics

    def validate(self) -> Metrics:
        """Figures on held-out tokens, as of this step."""
        if self.metrics.get("val_step") != self.step:
            with torch.compiler.set_stance("force_eager"):  # it looks at every node site
                self.metrics |= {**evaluate(self.model, self._heldout()), "val_step": self.step}
            if not self.curve or self.curve[-1]["step"] != self.step:
                self.curve.append({"step": self.step, "tokens": self.step * self._tokens_per_step})
            self.curve[-1] |= {name: self.metrics[name] for name in ("val_loss", "dead_neurons")}
        return self.metrics

    def result(self, metrics: Metrics) -> TrainResult:
        """The end of the run, with what describes the whole of it."""
        metrics = metrics | {
            "total_params": sum(p.numel() for p in self.model.parameters()),
            "flops": flops_per_token(self.model.config) * metrics["tokens"],
        }
        status: Literal["ok", "diverged"] = "diverged" if self.reason else "ok"
        dtype: ComputeType = "bfloat16" if self.model.compute_dtype is torch.bfloat16 else "float32"
        return TrainResult(self.model, status, self.reason, metrics, dtype, tuple(self.curve))

    @property
    def _tokens_per_step(self) -> int:
        return self.recipe.batch_size * self.model.config.context

    @property
    def diverged(self) -> bool:
        """Whether the last logged loss showed that training has failed."""
        return bool(self.reason)

    def progress(self) -> RunState:
        """What a checkpoint holds beside the tensors."""
        losses = gathered(self.window_loss.item())
        seconds = time.monotonic() - self.window_start if self.window_steps else 0.0
        window = {"losses": losses, "steps": self.window_steps, "seconds": seconds}
        figures = {"step": self.step, "seconds": self.seconds, "metrics": self.metrics, "curve": self.curve}
        return {"run": self._identity(), "window": window} | figures

    def tensors(self) -> Tensors:
        """Weights and moments, in their own memory, this worker's shards where they are sharded."""
        weights = {f"model.{name}": p.detach() for name, p in self.optimizer.named.items()}
        return weights | self.optimizer.state()

    def load(self, progress: RunState, read: Callable[[Tensors], None]) -> None:
        """Continue from a checkpoint: to the same weights bit for bit if there are as many workers as there were.

        Where the recipe leaves the type of activations open, it stays the one that the run began with.
        """
        began = progress["run"].get("training", {}).get("dtype")
        if self.asked.dtype == "auto" and began in get_args(ComputeType) and began != self.recipe.dtype:
            self._build(self.model.config, self.recipe.model_copy(update={"dtype": began}))
        self._refuse_other(progress["run"])
        self.touched = True
        read(self.tensors())
        self.step, self.seconds, self.metrics = progress["step"], progress["seconds"], progress["metrics"]
        self.curve = list(progress.get("curve", ()))  # checkpoints of earlier versions have none
        self.optimizer.continue_from(self.step)
        losses = progress["window"]["losses"]
        same = len(losses) == world_size()
        self.window_loss.fill_(losses[rank()] if same else sum(losses) / len(losses))
        self.window_steps = progress["window"]["steps"]
        self.window_start = time.monotonic() - progress["window"]["seconds"]

    def _identity(self) -> dict[str, Any]:
        """What decides the weights: how often something is reported or kept does not."""
        recipe = self.recipe.model_dump(mode="json", exclude=set(RUN_ONLY))
        return {"model": self.model.config.model_dump(mode="json"), "training": recipe} | {
            "data": {"key": self.data.manifest.key}
        }

    def _refuse_other(self, run: dict[str, Any]) -> None:
        # what a checkpoint of an earlier version does not know was then as it is by default
        known = {name: config.model_json_schema()["properties"] for name, config in SECTIONS.items()}
        for section, own in self._identity().items():
            theirs = run.get(section, {})
            for field, value in own.items():
                before = theirs.get(field, known.get(section, {}).get(field, {}).get("default"))
                if before != value:
                    raise OtherRun(
                        f"{section}.{field} {before!r}, now {value!r}; allowed: the same run again, or an empty folder"
                    )

    def _learn(self, tokens: Tensor) -> Tensor:
        """Move the weights by the gradient of a batch (B, T + 1); gives its loss."""
        loss = self.passes(tokens)
        self.optimizer.update()
        return loss

    def _rows(self, step: int) -> npt.NDArray[np.int64]:
        recipe, T = self.recipe, self.model.config.context
        return self.data.batch(
            "train",
            step,
            batch_size=recipe.batch_size,
            context=T,
            seed=recipe.seed,
            rank=rank(),
            world=world_size(),
        )

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
