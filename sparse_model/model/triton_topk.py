"""AbsTopK on a GPU: one program per row finds the k-th magnitude by bisection on its bits, in registers.

GELU can be fused in. Fifteen steps are exact in bfloat16, 31 in float32; nothing is sorted, nothing waits for the host.
The same kernels run on a CPU under TRITON_INTERPRET=1, which is how they are tested where there is no GPU.

Shapes: R rows (all leading axes), C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_MAGNITUDE_BITS = {torch.bfloat16: 15, torch.float16: 15, torch.float32: 31}


def triton_topk(x: Tensor, k: int, gelu: bool = False) -> Tensor:
    """abs_topk(x, k) of x (..., C), or abs_topk(gelu(x), k), with its gradient; entries tied with the k-th stay."""
    sparse: Tensor = _TritonTopK.apply(x, k, gelu)  # type: ignore[no-untyped-call]
    return sparse


class _TritonTopK(torch.autograd.Function):
    """Saves no mask: what was kept is what is at least the row's threshold in the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, gelu: bool) -> Tensor:
        x = x.contiguous()
        y, threshold = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.int32)
        _forward_kernel[_grid(x)](x, y, threshold, k, x.shape[-1], **_shape_of(x), GELU=gelu)
        ctx.save_for_backward(x if gelu else y, y, threshold)
        ctx.gelu = gelu
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, y, threshold = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(grad)
        _backward_kernel[_grid(x)](grad, x, y, threshold, grad_x, x.shape[-1], **_shape_of(x), GELU=ctx.gelu)
        return grad_x, None, None


def _grid(x: Tensor) -> tuple[int]:
    return (x.numel() // x.shape[-1],)


def _shape_of(x: Tensor) -> dict[str, int]:
    block = triton.next_power_of_2(x.shape[-1])
    return {"BITS": _MAGNITUDE_BITS[x.dtype], "BLOCK": block, "num_warps": min(16, max(1, block // 512))}


@triton.jit  # type: ignore[untyped-decorator]
def _magnitude(y, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bits of |y| as int32: they order as magnitudes do."""
    if BITS == 15:
        return y.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    return y.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit  # type: ignore[untyped-decorator]
def _forward_kernel(x_ptr, y_ptr, threshold_ptr, k, C, BITS: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    y = tl.load(x_ptr + row * C + channel, mask=inside, other=0.0)
    if GELU:
        wide = y.to(tl.float32)
        y = (0.5 * wide * (1.0 + tl.erf(wide * 0.7071067811865476))).to(y.dtype)
    magnitude = tl.where(inside, _magnitude(y, BITS), -1)
    threshold = tl.sum(tl.zeros([BLOCK], tl.int32), 0)
    for step in range(BITS):
        candidate = threshold | (1 << (BITS - 1 - step))
        enough = tl.sum((magnitude >= candidate).to(tl.int32), 0) >= k
        threshold = tl.where(enough, candidate, threshold)
    y = tl.where(magnitude >= threshold, y, 0.0).to(y.dtype)
    tl.store(y_ptr + row * C + channel, y, mask=inside)
    tl.store(threshold_ptr + row, threshold)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, x_ptr, y_ptr, threshold_ptr, out_ptr, C, BITS: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    place = row * C + channel
    grad = tl.load(grad_ptr + place, mask=inside, other=0.0)
    y = tl.load(y_ptr + place, mask=inside, other=0.0)
    kept = _magnitude(y, BITS) >= tl.load(threshold_ptr + row)
    slope = tl.where(kept, grad, 0.0).to(tl.float32)
    if GELU:
        x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        slope = slope * (0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density)
    tl.store(out_ptr + place, slope.to(grad.dtype), mask=inside)
