"""AbsTopK: keep the k largest magnitudes of the last axis, zero the rest (METHOD 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_model.model.norm import rms_norm

Rows = npt.NDArray[np.int16]

WIDEST_ON_GPU = 16_384
"""Channels of a row that the GPU kernel holds in registers."""

_SORTS_FAST = 512
"""Integers of 16 bits that numpy sorts without branches; to partition twice as many takes five times as long each."""


def abs_topk(x: Tensor, k: int) -> Tensor:
    """x (..., C) with all but its k largest magnitudes per row zeroed; the gradient flows through what is kept.

    Entries tied with the k-th largest are all kept, zeros never: where fewer than k are nonzero, gradient reaches those
    alone. Raises ValueError unless 1 <= k <= C.
    """
    if not 1 <= k <= x.shape[-1]:
        raise ValueError(f"k {k}; allowed: 1 to {x.shape[-1]}, the length of the last axis")
    if k == x.shape[-1]:
        return x
    if _has_kernel(x):
        return _triton(x, k)
    sparse: Tensor = _AbsTopK.apply(x, k)  # type: ignore[no-untyped-call]
    return sparse


def gelu_topk(x: Tensor, k: int) -> Tensor:
    """abs_topk of GELU, in one kernel where there is one."""
    if k < x.shape[-1] and _has_kernel(x):
        return _triton(x, k, gelu=True)
    return abs_topk(F.gelu(x), k)


def norm_topk(x: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """abs_topk of RMSNorm of x (..., C), rounded to `dtype` in between, in one kernel where there is one."""
    if k < x.shape[-1] and _has_kernel(x):
        return _triton_norm(x, k, dtype)
    return abs_topk(rms_norm(x, dtype), k)


def _has_kernel(x: Tensor) -> bool:
    return x.is_cuda and x.dtype is not torch.float64 and x.shape[-1] <= WIDEST_ON_GPU


def add_topk(stream: Tensor, x: Tensor, k: int) -> Tensor:
    """stream + abs_topk(x, k), both (..., C), in one kernel where there is one."""
    if k < x.shape[-1] and _has_kernel(x):
        return _triton_add(stream, x, k)
    return stream + abs_topk(x, k)


def _triton(x: Tensor, k: int, gelu: bool = False) -> Tensor:
    from sparse_model.kernels.topk import triton_topk  # triton comes with torch's GPU builds only

    result: Tensor = triton_topk(x, k, gelu)
    return result


def _triton_norm(x: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    from sparse_model.kernels.topk import triton_norm_topk

    result: Tensor = triton_norm_topk(
        x, k, dtype, torch.finfo(x.dtype).eps
    )  # the epsilon that rms_norm takes by itself
    return result


def _triton_add(stream: Tensor, x: Tensor, k: int) -> Tensor:
    from sparse_model.kernels.topk import triton_add_topk

    result: Tensor = triton_add_topk(stream, x, k)
    return result


class _AbsTopK(torch.autograd.Function):
    """A block of rows at a time, which stays in the cache over six passes. What was kept is what is not zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        sparse = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows, kept = x.reshape(-1, x.shape[-1]), sparse.view(-1, x.shape[-1])
        size = len(rows) if x.is_cuda else max(1, CPU_ENTRIES * torch.get_num_threads() // x.shape[-1])
        for some, result in zip(rows.split(size), kept.split(size), strict=True):  # type: ignore[no-untyped-call]
            _keep_largest(some, k, result)
        ctx.save_for_backward(sparse)
        return sparse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (sparse,) = ctx.saved_tensors
        # one pass over both
        return torch.ops.aten.hardshrink_backward(grad, sparse, 0), None


CPU_ENTRIES = 2**18
"""Entries at a time for each thread of a CPU."""

LEAST = -2
"""The rank of the smallest magnitude above zero: zeros are not kept, so that gradient reaches at most k entries."""


def _keep_largest(x: Tensor, k: int, result: Tensor) -> None:
    """Write the rows of x (R, C) with all but their k largest magnitudes zeroed into `result` (R, C).

    Works on the bit patterns: an integer mask of all ones or all zeros is several times cheaper than a boolean.
    """
    rank = _descending_rank(x)
    last_kept = _kth_smallest(rank, k).clamp_max(LEAST)
    # what is kept lies below last_kept + 1: the sign of the difference, smeared over all bits, marks it
    keep = rank.sub_(last_kept + 1).bitwise_right_shift_(torch.iinfo(rank.dtype).bits - 1)
    torch.bitwise_and(x.view(keep.dtype), keep, out=result.view(keep.dtype))


_BITS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def _descending_rank(x: Tensor) -> Tensor:
    """Integers below 0 of the width of x, the smaller the larger |x| is: IEEE magnitudes order as their bits do."""
    bits = _BITS[x.dtype]
    return (x.view(bits) & torch.iinfo(bits).max).bitwise_not_()


def _kth_smallest(rank: Tensor, k: int) -> Tensor:
    """(..., 1) the k-th smallest of each row of integers."""
    if rank.is_cuda:
        return rank.topk(k, dim=-1, largest=False, sorted=False).values.amax(-1, keepdim=True)
    rows = rank.numpy()
    half = rows.shape[-1] // 2
    if rows.itemsize == 2 and _SORTS_FAST / 2 < half <= _SORTS_FAST and rows.shape[-1] % 2 == 0:
        halves = np.sort(rows.reshape(-1, 2, half), axis=-1)
        return torch.from_numpy(_kth_smallest_of_two(halves[:, 0], halves[:, 1], k)).view(*rank.shape[:-1], 1)
    # numpy's vectorised partition beats torch.topk on CPU (benchmarks/kernels.py), but takes 30 times longer where the
    # one it looks for is one of very many at the lower end: zeros, of which there are many, must be at the upper one
    return torch.from_numpy(np.partition(rows, k - 1, axis=-1)[..., k - 1 : k])


def _kth_smallest_of_two(a: Rows, b: Rows, k: int) -> Rows:
    """(R,) the k-th smallest of each row of a and of b (R, C) together, which are sorted already."""
    rows, C = np.arange(len(a)), a.shape[1]
    # of the k smallest, how many are in a: the fewest for which the next of a is no smaller than the last of b's
    low, high = np.full(len(a), max(0, k - C)), np.full(len(a), min(k, C))
    while (low < high).any():
        middle = (low + high) // 2
        enough = a[rows, np.minimum(middle, C - 1)] >= b[rows, k - 1 - middle]
        low, high = np.where(enough, low, np.minimum(middle + 1, high)), np.where(enough, middle, high)
    # an index of -1 stands for none
    smallest = np.iinfo(a.dtype).min
    last_of_a = np.where(low > 0, a[rows, low - 1], smallest)
    last_of_b = np.where(low < k, b[rows, k - 1 - low], smallest)
    return np.maximum(last_of_a, last_of_b)
