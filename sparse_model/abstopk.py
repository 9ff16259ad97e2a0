"""AbsTopK: keep the k largest magnitudes of the last axis, zero the rest (METHOD 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def abs_topk(x: Tensor, k: int) -> Tensor:
    """x (..., C) with all but its k largest magnitudes per row zeroed; the gradient flows through what is kept.

    Entries tied with the k-th largest are all kept. Raises ValueError unless 1 <= k <= C.
    """
    if not 1 <= k <= x.shape[-1]:
        raise ValueError(f"k {k}; allowed: 1 to {x.shape[-1]}, the length of the last axis")
    if k == x.shape[-1]:
        return x
    sparse: Tensor = _AbsTopK.apply(x, k)  # type: ignore[no-untyped-call]
    return sparse


class _AbsTopK(torch.autograd.Function):
    """Works on the bit patterns: an integer mask of all ones or all zeros is several times cheaper than a boolean."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        magnitude = _ordered_magnitude(x)
        threshold = _kth_largest(magnitude, k)
        width = torch.iinfo(magnitude.dtype).bits
        # below the threshold the difference is negative: its sign, smeared over all bits, marks what goes
        keep = magnitude.sub_(threshold).bitwise_right_shift_(width - 1).bitwise_not_()
        ctx.save_for_backward(keep)
        return _masked(x, keep)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _masked(grad, keep), None


def _masked(x: Tensor, keep: Tensor) -> Tensor:
    return (x.view(keep.dtype) & keep).view(x.dtype)


_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def _ordered_magnitude(x: Tensor) -> Tensor:
    """|x| as integers of the same width: IEEE floats without their sign bit order as their bit patterns do."""
    bits = _BITS[x.dtype]
    return x.view(bits) & torch.iinfo(bits).max


def _kth_largest(magnitude: Tensor, k: int) -> Tensor:
    """(..., 1) the k-th largest of each row of integers."""
    if magnitude.is_cuda:
        return magnitude.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    index = magnitude.shape[-1] - k
    # numpy's vectorised partition beats torch.topk on CPU (benchmarks/kernels.py)
    rows = np.partition(magnitude.numpy(), index, axis=-1)
    return torch.from_numpy(rows[..., index : index + 1])
