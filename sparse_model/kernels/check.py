"""Whether a machine with a GPU can compile and run kernels: what `sweeps doctor` asks."""

from __future__ import annotations

import os
import shutil

import torch


def missing_compiler() -> bool:
    """Whether this machine lacks the C compiler that Triton needs to launch what it compiles."""
    return not (os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang"))))


def run_one(device: str) -> None:
    """Compile a kernel on a GPU and compare what it gives; raises RuntimeError if it differs, or what Triton raises."""
    from sparse_model.kernels.topk import triton_topk

    x = torch.arange(1.0, 17.0, device=device).bfloat16()
    if triton_topk(x[None], 4).count_nonzero() != 4:
        raise RuntimeError(f"a kernel gives wrong values on {device}")
