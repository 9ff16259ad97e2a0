"""Timing things side by side: they take turns, so that a machine that speeds up or slows down does so for all."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Time as it passes; and what this process takes of its cores, which other programs disturb less (with one thread)."""


def medians_ms(
    things: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2, clock: str = "wall"
) -> dict[str, float]:
    """Median milliseconds of each thing over `rounds` calls, taken in turn after `warmup` calls."""
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in things}
    for turn in range(warmup + rounds):
        for name, thing in things.items():
            synchronize()
            start = now()
            thing()
            synchronize()
            if turn >= warmup:
                times[name].append(1e3 * (now() - start))
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
