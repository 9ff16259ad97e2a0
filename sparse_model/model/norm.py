"""RMSNorm as one function of autograd: a few passes over the activations, where PyTorch's on a CPU makes a dozen."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """x (..., C) by the root mean square of its last axis, computed in the type of x and rounded to `dtype`.

    What is added to the mean square, so that zero stays zero, is the smallest step of the type of x.
    """
    dtype = dtype or x.dtype
    if _has_kernel(x):
        return F.rms_norm(x, (x.shape[-1],)).to(dtype)
    normed: Tensor = _RMSNorm.apply(x, dtype)  # type: ignore[no-untyped-call]
    return normed


def _has_kernel(x: Tensor) -> bool:
    return not x.is_cpu


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = squares.div_(x.shape[-1]).add_(torch.finfo(x.dtype).eps).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(normed, inverse)
        rounded: Tensor = normed.to(dtype)
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        normed, inverse = ctx.saved_tensors
        along = (grad * normed).mean(-1, keepdim=True)
        return torch.addcmul(grad, normed, along, value=-1).mul_(inverse).to(normed.dtype), None
