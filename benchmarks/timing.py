"""Timing things side by side: they take turns, so that a machine that speeds up or slows down does so for all."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def medians_ms(things: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, float]:
    """Median wall milliseconds of each thing over `rounds` calls, taken in turn after `warmup` calls."""
    times: dict[str, list[float]] = {name: [] for name in things}
    for turn in range(warmup + rounds):
        for name, thing in things.items():
            synchronize()
            start = time.perf_counter()
            thing()
            synchronize()
            if turn >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(taken) for name, taken in times.items()}


def processor() -> str:
    """Name of what the figures are of: the GPU, or the processor."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
