"""What a study will cost, before anything is spent: its trials drawn at random, their work counted by formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import optuna
import torch

from circuit.tasks import source_name
from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.training.measures import flops_per_token
from sparse_model.training.memory import activation_bytes, state_bytes
from sweeps.frontier.queries import Frontier
from sweeps.search.sampling import OptunaSearch
from sweeps.study.space import TrialConfig
from sweeps.study.study import SearchConfig, Study

SAMPLE = 200
"""Configurations drawn to estimate means and extremes."""
CPU_CORE_FLOPS, GPU_FLOPS = 4e10, 3e13
"""Sustained training FLOP/s assumed of a device unless stated: a CPU core of a server, and a tenth of what an A100
promises in bfloat16 (small models do not fill it)."""
PRUNE_SECONDS = {"basic": 4.0, "full": 150.0}
"""Seconds per circuit (task, target loss and method) and its proofs assumed unless stated; they grow with the model.
Full proofs hold six more searches, of controls, some of backups, and an adversary."""
BYTES_PER_WEIGHT = {"model": 4, "checkpoint": 12}
"""Float32 weights; with two Adam moments."""
CIRCUIT_BYTES = 60_000
ROW_BYTES = 15_000
"""Measured sizes, of a circuit file and of the rows of a trial."""


@dataclass(frozen=True)
class Throughput:
    """How fast the work is done: FLOP/s of a device, seconds per circuit on its cores, and where that is from."""

    flops: float
    prune_seconds: float
    source: str


@dataclass(frozen=True)
class Memory:
    """What training takes of one device: weights, gradients and moments; activations of so many sequences at a time."""

    state_gb: float
    activations_gb: float
    micro_batch: int

    @property
    def gb(self) -> float:
        return self.state_gb + self.activations_gb


@dataclass(frozen=True)
class Plan:
    """The cost of a study. Devices are GPUs, or CPU cores where trials ask for none; they train. Pruning is apart."""

    trials: int
    parameters: tuple[int, int]
    tokens: float
    flops: float
    device_hours: float
    prune_core_hours: float
    prune_gpu_hours: float
    hours: float
    storage_gb: float
    memory: Memory
    peak_checkpoint_gb: float


def assumed_throughput(study: Study, flops: float | None, prune_seconds: float | None) -> Throughput:
    """The throughput as stated, and where not, as assumed for the study's kind of device."""
    gpu = study.resources.gpus_per_worker > 0
    source = (
        "stated" if flops is not None else f"assumed of a {'GPU' if gpu else 'CPU core'}: --flops or --like replace it"
    )
    flops = flops or (GPU_FLOPS if gpu else CPU_CORE_FLOPS)
    return Throughput(flops, prune_seconds or PRUNE_SECONDS[study.proofs], source)


def measured_throughput(uri: str, study: Study) -> Throughput:
    """The throughput a study may expect, from the rows of the study at `uri`; InputError where none of them tells.
    Seconds of a circuit are of those with as many proofs; where there are none, they are assumed."""
    found = Frontier(uri)
    rows = [
        row for row in found.trials().to_pylist() if row["status"] == "ok" and row["flops"] and row["train_seconds"]
    ]
    if not rows:
        raise InputError(f"like {uri}: no finished trial has its FLOPs and seconds")
    circuits = found.circuits(["trial", "seconds", "proofs"]).to_pylist()
    alike = [row for row in circuits if (row["proofs"] or "basic") == study.proofs]
    seconds = [row["seconds"] for row in alike if row["seconds"]]
    flops = sum(row["flops"] for row in rows) / sum(row["train_seconds"] * (row["devices"] or 1) for row in rows)
    source = f"measured over {len(rows)} trials of {uri}"
    if seconds:
        return Throughput(flops, fmean(seconds), source)
    return Throughput(
        flops, PRUNE_SECONDS[study.proofs], f"{source}; its circuits have no {study.proofs} proofs: assumed"
    )


def plan_study(study: Study, throughput: Throughput) -> Plan:
    """The plan of a study. FLOPs are counted as if dense, as rows count them."""
    configs = sample(study)
    trials = study.search.trials * len(study.seeds)
    sizes = [count_parameters(config.model) for config in configs]
    flops = trials * fmean(config.training.tokens * flops_per_token(config.model) for config in configs)
    kinds = sum(len(study.pruning.methods(source_name(source))) for source in study.task_sources)
    circuits = trials * len(study.target_losses) * kinds
    device_hours = flops / throughput.flops / 3600
    prune_hours = circuits * throughput.prune_seconds / 3600
    at_once = min(study.resources.concurrency, study.search.in_flight * len(study.seeds), trials)
    devices, pruning = study.resources.devices * at_once, study.resources.pruning_parallel * at_once
    return Plan(
        trials=trials,
        parameters=(min(sizes), max(sizes)),
        tokens=trials * fmean(config.training.tokens for config in configs),
        flops=flops,
        device_hours=device_hours,
        prune_core_hours=prune_hours * study.resources.cpus_per_pruning_task,
        prune_gpu_hours=prune_hours * study.resources.gpus_per_pruning_task,
        hours=device_hours / devices + prune_hours / pruning,
        storage_gb=(trials * (fmean(sizes) * BYTES_PER_WEIGHT["model"] + ROW_BYTES) + circuits * CIRCUIT_BYTES) / 1e9,
        memory=max((training_memory(config, study) for config in configs), key=lambda taken: taken.gb),
        peak_checkpoint_gb=2 * at_once * max(sizes) * BYTES_PER_WEIGHT["checkpoint"] / 1e9,
    )


def training_memory(config: TrialConfig, study: Study) -> Memory:
    """Of one trial: activations of `micro_batch` sequences, or else of all that a worker has of a batch."""
    resources, recipe = study.resources, config.training
    rows = max(1, recipe.batch_size // resources.workers)
    at_once = min(rows, recipe.micro_batch or rows)
    low = recipe.dtype == "bfloat16" or (recipe.dtype == "auto" and resources.gpus_per_worker > 0)
    state = state_bytes(count_parameters(config.model), resources.parallel, resources.workers)
    return Memory(state / 1e9, at_once * activation_bytes(config.model, 2 if low else 4) / 1e9, at_once)


def sample(study: Study) -> Sequence[TrialConfig]:
    """Configurations of the study's space, drawn at random (and its own first ones before them)."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = SearchConfig.model_validate(
        {"trials": SAMPLE, "sampler": "random", "seed": study.search.seed, "try_first": study.search.try_first}
    )
    drawn = OptunaSearch(study.name, study.space, search)
    return [study.space.config(drawn.draw(i)[0], 0) for i in range(min(SAMPLE, study.search.trials))]


def count_parameters(config: ModelConfig) -> int:
    """Parameters of a model, zeros and bigram table included; none of them is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in SparseTransformer(config, torch.float32).parameters())
