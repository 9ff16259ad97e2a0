"""AbsTopK on a GPU: one program per row finds the k-th magnitude by bisection on its bits, in registers.

GELU or RMSNorm before it can be fused in. Nothing is sorted, nothing waits for the host. The search begins eight
octaves below the row's largest magnitude, where the k-th of activations lies; if it is not there, at zero. The same
kernels run on a CPU under TRITON_INTERPRET=1, and compile on one for any GPU (`ahead`).

Shapes: R rows (all leading axes), C channels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_model.kernels.ahead import Variant

WIDEST = 16_384
"""Channels of a row that fit a program's registers without spilling; `benchmarks/kernels.py --compile` shows it."""

PER_LANE = 32
"""Channels of a row that one lane of a warp holds. Rows of 1024 take one warp, whose sums need no barrier."""

_MAGNITUDE_BITS = {torch.bfloat16: 15, torch.float16: 15, torch.float32: 31}
_REACH = {torch.bfloat16: 8 << 7, torch.float16: 8 << 10, torch.float32: 8 << 23}
"""Eight octaves (factors of two) of magnitude, in units of the last bit."""


def triton_topk(x: Tensor, k: int, gelu: bool = False) -> Tensor:
    """abs_topk(x, k) of x (..., C), or abs_topk(gelu(x), k), with its gradient; entries tied with the k-th stay."""
    sparse: Tensor = _TritonTopK.apply(x, k, gelu)  # type: ignore[no-untyped-call]
    return sparse


def triton_norm_topk(x: Tensor, k: int, dtype: torch.dtype, eps: float) -> Tensor:
    """abs_topk(rms_norm(x).to(dtype), k) of x (..., C), without a gain, with its gradient in the type of x."""
    sparse: Tensor = _TritonNormTopK.apply(x, k, dtype, eps)  # type: ignore[no-untyped-call]
    return sparse


class _TritonTopK(torch.autograd.Function):
    """Saves no mask: what was kept is what is at least the row's threshold in the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, gelu: bool) -> Tensor:
        rows = _rows(x)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        threshold = torch.empty(len(rows), dtype=torch.int32, device=x.device)
        _topk_forward[(len(rows),)](rows, y, threshold, k, *_sizes(rows), **_constants(y), GELU=gelu)
        ctx.save_for_backward(rows if gelu else y, y, threshold)
        ctx.gelu = gelu
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, y, threshold = ctx.saved_tensors
        rows = _rows(grad)
        grad_x = torch.empty(y.shape, dtype=grad.dtype, device=grad.device)
        x_stride = x.stride(0) if ctx.gelu else y.shape[-1]
        _topk_backward[(len(rows),)](
            rows, x, y, threshold, grad_x, *_sizes(rows), x_stride, **_constants(y, search=False), GELU=ctx.gelu
        )
        return grad_x, None, None


class _TritonNormTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, dtype: torch.dtype, eps: float) -> Tensor:
        rows = _rows(x)
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
        threshold = torch.empty(len(rows), dtype=torch.int32, device=x.device)
        scale = torch.empty(len(rows), dtype=torch.float32, device=x.device)
        _norm_topk_forward[(len(rows),)](rows, y, threshold, scale, k, *_sizes(rows), eps, **_constants(y))
        ctx.save_for_backward(rows, y, threshold, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, y, threshold, scale = ctx.saved_tensors
        rows = _rows(grad)
        grad_x = torch.empty(y.shape, dtype=x.dtype, device=grad.device)
        _norm_topk_backward[(len(rows),)](
            rows, x, y, threshold, scale, grad_x, *_sizes(rows), x.stride(0), **_constants(y, search=False)
        )
        return grad_x, None, None, None


def _rows(x: Tensor) -> Tensor:
    """x as (R, C) with any stride between rows: a part of a wider tensor is not copied."""
    C = x.shape[-1]
    if x.stride(-1) == 1 or C == 1:
        strides = [(n, s) for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n != 1]
        if all(outer == s * n for (_, outer), (n, s) in pairwise(strides)):
            return x.as_strided((x.numel() // C, C), (strides[-1][1] if strides else C, 1))
    return x.contiguous().view(-1, C)


def _sizes(rows: Tensor) -> tuple[int, int]:
    return rows.shape[1], rows.stride(0)


def _constants(y: Tensor, search: bool = True) -> dict[str, int]:
    block = triton.next_power_of_2(y.shape[-1])
    constants = {"BITS": _MAGNITUDE_BITS[y.dtype], "BLOCK": block, "num_warps": _warps(block)}
    return constants | ({"REACH": _REACH[y.dtype]} if search else {})


def _warps(block: int) -> int:
    return max(1, block // (32 * PER_LANE))


@triton.jit  # type: ignore[untyped-decorator]
def _magnitude(y, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bits of |y| as int32: they order as magnitudes do."""
    # one return: what stands behind a constant `if` with a return is compiled all the same
    if BITS == 15:
        bits = y.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    else:
        bits = y.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return bits


@triton.jit  # type: ignore[untyped-decorator]
def _kth_largest(magnitude, k, REACH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest threshold that at least k of the magnitudes (BLOCK) reach; those below 0 are none."""
    top = tl.minimum(tl.max(magnitude, 0), 0x7FFFFFFE)  # the last pattern of NaN: one more would overflow
    near = tl.maximum(top - REACH, 0)
    reached = tl.sum((magnitude >= near).to(tl.int32), 0) >= k
    low = tl.where(reached, near, 0)
    high = tl.where(reached, top + 1, near)
    while high - low > 1:
        middle = low + (high - low) // 2
        enough = tl.sum((magnitude >= middle).to(tl.int32), 0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low


@triton.jit  # type: ignore[untyped-decorator]
def _topk_forward(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, threshold_ptr, k, C, x_stride,
    BITS: tl.constexpr, BLOCK: tl.constexpr, REACH: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    y = tl.load(x_ptr + row * x_stride + channel, mask=inside, other=0.0)
    if GELU:
        wide = y.to(tl.float32)
        y = (0.5 * wide * (1.0 + tl.erf(wide * 0.7071067811865476))).to(y.dtype)
    magnitude = tl.where(inside, _magnitude(y, BITS), -1)
    threshold = _kth_largest(magnitude, k, REACH)
    y = tl.where(magnitude >= threshold, y, 0.0).to(y.dtype)
    tl.store(y_ptr + row * C + channel, y, mask=inside)
    tl.store(threshold_ptr + row, threshold)


@triton.jit  # type: ignore[untyped-decorator]
def _topk_backward(  # type: ignore[no-untyped-def]
    grad_ptr, x_ptr, y_ptr, threshold_ptr, out_ptr, C, grad_stride, x_stride,
    BITS: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    grad = tl.load(grad_ptr + row * grad_stride + channel, mask=inside, other=0.0)
    y = tl.load(y_ptr + row * C + channel, mask=inside, other=0.0)
    kept = _magnitude(y, BITS) >= tl.load(threshold_ptr + row)
    slope = tl.where(kept, grad, 0.0).to(tl.float32)
    if GELU:
        x = tl.load(x_ptr + row * x_stride + channel, mask=inside, other=0.0).to(tl.float32)
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        slope = slope * (0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density)
    tl.store(out_ptr + row * C + channel, slope.to(grad.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_topk_forward(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, threshold_ptr, scale_ptr, k, C, x_stride, eps,
    BITS: tl.constexpr, BLOCK: tl.constexpr, REACH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    x = tl.load(x_ptr + row * x_stride + channel, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / C + eps)
    y = (x * scale).to(y_ptr.dtype.element_ty)
    magnitude = tl.where(inside, _magnitude(y, BITS), -1)
    threshold = _kth_largest(magnitude, k, REACH)
    y = tl.where(magnitude >= threshold, y, 0.0).to(y.dtype)
    tl.store(y_ptr + row * C + channel, y, mask=inside)
    tl.store(threshold_ptr + row, threshold)
    tl.store(scale_ptr + row, scale)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_topk_backward(  # type: ignore[no-untyped-def]
    grad_ptr, x_ptr, y_ptr, threshold_ptr, scale_ptr, out_ptr, C, grad_stride, x_stride,
    BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    grad = tl.load(grad_ptr + row * grad_stride + channel, mask=inside, other=0.0)
    y = tl.load(y_ptr + row * C + channel, mask=inside, other=0.0)
    kept = _magnitude(y, BITS) >= tl.load(threshold_ptr + row)
    slope = tl.where(kept, grad, 0.0).to(tl.float32)
    scale = tl.load(scale_ptr + row)
    normed = tl.load(x_ptr + row * x_stride + channel, mask=inside, other=0.0).to(tl.float32) * scale
    slope = scale * (slope - normed * (tl.sum(slope * normed, 0) / C))
    tl.store(out_ptr + row * C + channel, slope.to(out_ptr.dtype.element_ty), mask=inside)


_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_CHOSEN = (("bf16", 64), ("bf16", 300), ("bf16", 1024), ("bf16", 2048), ("bf16", 8192), ("bf16", WIDEST),
           ("fp16", 2048), ("fp32", 64), ("fp32", 2048), ("fp32", WIDEST))  # fmt: skip


def variants() -> list[Variant]:
    """What is compiled to prove that these kernels compile: types x widths, GELU on and off, both directions."""
    return [variant for name, width in _CHOSEN for variant in _variants_of(name, width)]


def _variants_of(name: str, width: int) -> list[Variant]:
    block = triton.next_power_of_2(width)
    base = {"BITS": _MAGNITUDE_BITS[_TYPES[name]], "BLOCK": block}
    search = base | {"REACH": _REACH[_TYPES[name]]}
    x, y, warps = f"*{name}", f"*{name}", _warps(block)
    found = []
    for gelu in (False, True):
        label = f"{'gelu_' if gelu else ''}topk {name} {width}"
        pointers = {"x_ptr": x, "y_ptr": y, "threshold_ptr": "*i32"}
        forward = pointers | {"k": "i32", "C": "i32", "x_stride": "i32"}
        backward = {"grad_ptr": x} | pointers | {"out_ptr": x, "C": "i32", "grad_stride": "i32", "x_stride": "i32"}
        found += [
            Variant(f"{label} forward", _topk_forward, forward, search | {"GELU": gelu}, warps),
            Variant(f"{label} backward", _topk_backward, backward, base | {"GELU": gelu}, warps),
        ]
    pointers = {"x_ptr": "*fp32", "y_ptr": y, "threshold_ptr": "*i32", "scale_ptr": "*fp32"}
    forward = pointers | {"k": "i32", "C": "i32", "x_stride": "i32", "eps": "fp32"}
    backward = {"grad_ptr": y} | pointers | {"out_ptr": "*fp32", "C": "i32", "grad_stride": "i32", "x_stride": "i32"}
    return [
        *found,
        Variant(f"norm_topk {name} {width} forward", _norm_topk_forward, forward, search, warps),
        Variant(f"norm_topk {name} {width} backward", _norm_topk_backward, backward, base, warps),
    ]
