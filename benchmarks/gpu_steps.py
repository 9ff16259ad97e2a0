"""A step of training on a GPU, ours and a plain one, timed and taken apart: a part of `gpu.py`."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_kernels import DEVICE, GPU, Figures
from timing import medians_ms
from train_step import PlainGPT

from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.training.cuda_graph import RecordedWork
from sparse_model.training.optimizer import SparseOptimizer


def sync() -> None:
    if GPU:
        torch.cuda.synchronize()


def our_step(
    config: ModelConfig, recipe: TrainConfig, tokens: torch.Tensor, compiled: bool = False, graph: bool = False
) -> Any:
    model = on_device(lambda: SparseTransformer(config, torch.bfloat16))
    if compiled and GPU:
        for layer in model.layers:
            layer.compile()
    optimizer = SparseOptimizer(model, recipe, n_steps=1000, capturable=graph and GPU)

    def learn(tokens: torch.Tensor) -> torch.Tensor:
        loss = model(tokens[:, :-1], targets=tokens[:, 1:])
        loss.backward()
        optimizer.update()
        return loss.detach()

    work = RecordedWork(learn) if graph and GPU else learn

    def step() -> None:
        optimizer.set_learning_rate(500)
        work(tokens)
        optimizer.project(500)

    return step


def on_device(build: Callable[[], Any]) -> Any:
    """What is built with its initial values drawn on the device, which takes a moment and not seconds."""
    with torch.device(DEVICE):
        return build()


def plain_step(config: ModelConfig, tokens: torch.Tensor, compiled: bool) -> Any:
    model = on_device(lambda: PlainGPT(config))
    adamw = torch.optim.AdamW(model.parameters(), fused=True)
    if compiled and GPU:
        for block in model.blocks:
            block.compile()

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        adamw.step()
        adamw.zero_grad()

    return step


def timed(name: str, step: Callable[[], None], rounds: int, profile: bool) -> Figures:
    start = time.monotonic()
    step()
    sync()
    for _ in range(4):  # a graph is recorded at the fourth
        step()
    found: Figures = {f"{name}_first_seconds": time.monotonic() - start}
    found[f"{name}_ms"] = medians_ms({"step": step}, rounds)["step"]
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        step()
        sync()
        found[f"{name}_peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
        if profile:
            found[f"{name}_waits"] = waits(step)
    if profile:
        found[f"{name}_shares_ms"] = shares(step)
    return found


def waits(step: Callable[[], None]) -> list[str]:
    """Where the program waited for the device in a step, by torch's own warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


KINDS = (
    ("products", ("gemm", "nvjet", "cutlass", "addmm", "aten::mm", "cublas", "splitk")),
    ("attention", ("flash", "fmha", "attention", "cudnn", "softmax")),
    ("abstopk", ("topk_forward", "topk_backward", "AbsTopK")),
    ("projection", ("_lane_minima", "_bracket", "_gather", "_threshold", "_zero_the_rest", "project")),
    ("adamw", ("adam",)),
    ("norms of gradients", ("lpnorm", "foreach", "multi_tensor")),
)


def shares(step: Callable[[], None]) -> Figures:
    """Milliseconds of device time by kind of kernel, and the largest kernels by name."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA] if GPU else [activity.CPU]) as profiler:
        step()
        sync()
    kinds: dict[str, float] = defaultdict(float)
    names: dict[str, float] = {}
    for event in profiler.key_averages():
        spent = (event.self_device_time_total if GPU else event.self_cpu_time_total) / 1e3
        names[event.key[:110]] = names.get(event.key[:110], 0.0) + spent
        kind = next((kind for kind, parts in KINDS if any(p.lower() in event.key.lower() for p in parts)), "others")
        kinds[kind] += spent
    largest = dict(sorted(names.items(), key=lambda item: -item[1])[:24])
    return {"by_kind": dict(kinds), "largest": largest}
