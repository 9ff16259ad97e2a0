"""In which type activations are computed where a recipe leaves it open (`dtype: auto`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from sparse_model.distributed.workers import from_first
from sparse_model.model.config import TrainConfig

ComputeType = Literal["float32", "bfloat16"]

CPU_INFO = Path("/proc/cpuinfo")
WITH_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of processors that multiply bfloat16 themselves: of Intel's and AMD's, and the last of ARM's."""


def resolved(recipe: TrainConfig, device: torch.device) -> TrainConfig:
    """The recipe with its type decided, by the first worker for all; all workers call this alike."""
    if recipe.dtype != "auto":
        return recipe
    return recipe.model_copy(update={"dtype": from_first(fastest(device))})


def fastest(device: torch.device) -> ComputeType:
    """bfloat16 on a GPU, and on a processor that has instructions for it; else it is the slower one."""
    return "bfloat16" if device.type != "cpu" or _flags() & WITH_BFLOAT16 else "float32"


def _flags() -> set[str]:
    """What this machine's processor can do, as Linux tells; nothing where it does not."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return set()
    named = [line.partition(":") for line in lines]
    return {flag for name, _, flags in named if name.strip() in ("flags", "Features") for flag in flags.split()}
