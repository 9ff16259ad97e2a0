"""AbsTopK on a GPU: one program per row searches the k-th magnitude, in registers.

What comes before it (GELU, RMSNorm) or after it (the sum with the residual stream) can be fused in. Nothing is sorted,
nothing waits for the host. The search is for a threshold among the bits of the magnitudes, which order as these do: it
begins where the k-th of as many normal numbers would be, below the row's largest, and goes on by interpolating between
the counts at its two ends, which takes about six looks at a row where bisection takes 15 (31 in float32).

The same kernels run on a CPU under TRITON_INTERPRET=1, and compile on one for any GPU (`ahead`).

Shapes: R rows (all leading axes), C channels; the mask of what was kept has a bit each.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_model.kernels.ahead import Variant

WIDEST = 16_384
"""Channels of a row that fit a program's registers; `benchmarks/kernels.py --compile` shows what spills."""

PER_LANE = {"forward": 32, "backward": 16}
"""Channels of a row that one lane of a warp holds."""

_MAGNITUDE_BITS = {torch.bfloat16: 15, torch.float16: 15, torch.float32: 31}
_OCTAVE = {torch.bfloat16: 1 << 7, torch.float16: 1 << 10, torch.float32: 1 << 23}
"""A factor of two of magnitude, in units of the last bit."""


@torch.compiler.disable
def triton_topk(x: Tensor, k: int, gelu: bool = False) -> Tensor:
    """abs_topk(x, k) of x (..., C), or abs_topk(gelu(x), k), with its gradient; entries tied with the k-th stay."""
    sparse: Tensor = _TopK.apply(x, k, gelu)
    return sparse


@torch.compiler.disable
def triton_norm_topk(x: Tensor, k: int, dtype: torch.dtype, eps: float) -> Tensor:
    """abs_topk(rms_norm(x).to(dtype), k) of x (..., C), without a gain, with its gradient in the type of x."""
    sparse: Tensor = _NormTopK.apply(x, k, dtype, eps)
    return sparse


@torch.compiler.disable
def triton_add_topk(stream: Tensor, x: Tensor, k: int) -> Tensor:
    """stream + abs_topk(x, k), both (..., C), in the type of the stream, with its gradients."""
    added: Tensor = _AddTopK.apply(stream, x, k)
    return added


class _TopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, gelu: bool) -> Tensor:
        rows = _rows(x)
        y, mask = _empty(x, x.dtype), _mask_for(rows)
        _topk_forward[(len(rows),)](rows, y, mask, *_searched(rows, k, x.dtype), **_constants(rows, x.dtype), GELU=gelu)
        ctx.save_for_backward(rows if gelu else mask, mask)
        ctx.gelu = gelu
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, mask = ctx.saved_tensors
        if not ctx.gelu:
            return _masked(grad, mask, grad.dtype), None, None
        rows, grad_x = _rows(grad), _empty(grad, x.dtype)
        _gelu_topk_backward[(len(rows),)](
            rows, x, mask, grad_x, rows.shape[1], rows.stride(0), x.stride(0), **_constants(rows)
        )
        return grad_x, None, None


class _NormTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, dtype: torch.dtype, eps: float) -> Tensor:
        rows = _rows(x)
        y, mask = _empty(x, dtype), _mask_for(rows)
        scale = torch.empty(len(rows), dtype=torch.float32, device=x.device)
        _norm_topk_forward[(len(rows),)](
            rows, y, mask, scale, *_searched(rows, k, dtype), eps, **_constants(rows, dtype)
        )
        ctx.save_for_backward(rows, mask, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, mask, scale = ctx.saved_tensors
        rows, grad_x = _rows(grad), _empty(grad, x.dtype)
        _norm_topk_backward[(len(rows),)](
            rows, x, mask, scale, grad_x, rows.shape[1], rows.stride(0), x.stride(0), **_constants(rows)
        )
        return grad_x, None, None, None


class _AddTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream: Tensor, x: Tensor, k: int) -> Tensor:
        rows, base = _rows(x), _rows(stream)
        y, mask = _empty(stream, stream.dtype), _mask_for(rows)
        _add_topk_forward[(len(rows),)](
            rows, base, y, mask, *_searched(rows, k, x.dtype), base.stride(0), **_constants(rows, x.dtype)
        )
        ctx.save_for_backward(mask)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad, _masked(grad, mask, ctx.dtype), None


def _masked(grad: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    rows, grad_x = _rows(grad), _empty(grad, dtype)
    _masked_backward[(len(rows),)](rows, mask, grad_x, rows.shape[1], rows.stride(0), **_constants(rows))
    return grad_x


def _rows(x: Tensor) -> Tensor:
    """x as (R, C) with any stride between rows: a part of a wider tensor is not copied."""
    C = x.shape[-1]
    if x.stride(-1) == 1 or C == 1:
        strides = [(n, s) for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n != 1]
        if all(outer == s * n for (_, outer), (n, s) in pairwise(strides)):
            return x.as_strided((x.numel() // C, C), (strides[-1][1] if strides else C, 1))
    return x.contiguous().view(-1, C)


def _empty(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _mask_for(rows: Tensor) -> Tensor:
    return torch.empty(len(rows), -(-rows.shape[1] // 8), dtype=torch.uint8, device=rows.device)


def _searched(rows: Tensor, k: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    return k, rows.shape[1], rows.stride(0), _first_guess(rows.shape[1], k, dtype)


@cache
def _first_guess(C: int, k: int, dtype: torch.dtype) -> int:
    """How far below the largest of C normal numbers their k-th largest magnitude is, in units of the last bit."""
    largest, kth = (NormalDist().inv_cdf(1 - n / C / 2) for n in (0.5, k - 0.5))
    return max(1, round(_OCTAVE[dtype] * min(20.0, math.log2(largest / max(kth, 1e-9)))))


def _constants(rows: Tensor, searched: torch.dtype | None = None) -> dict[str, int]:
    """Without a type that is searched, those of a backward pass."""
    block = _block(rows.shape[1])
    warps = _warps(block, "backward" if searched is None else "forward")
    return {"BLOCK": block, "num_warps": warps} | ({} if searched is None else {"BITS": _MAGNITUDE_BITS[searched]})


def _block(C: int) -> int:
    return max(8, int(triton.next_power_of_2(C)))


def _warps(block: int, direction: str) -> int:
    return min(16, max(1, block // (32 * PER_LANE[direction])))


@triton.jit
def _magnitude(y, BITS: tl.constexpr):
    """Bits of |y| as int32: they order as magnitudes do."""
    # one return: what stands behind a constant `if` with a return is compiled all the same
    if BITS == 15:
        bits = y.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    else:
        bits = y.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return bits


@triton.jit
def _normal(x, EXACT: tl.constexpr):
    """The share of a normal distribution below x, and its density at x; of 16 bits to a tenth of their precision."""
    power = tl.exp(-0.5 * x * x)
    if EXACT:
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        # Abramowitz and Stegun 7.1.26, in a third of the time: the power is there already
        t = 1.0 / (1.0 + 0.23164188 * tl.abs(x))
        tail = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
        tail = 0.5 * t * tail * power
        share = tl.where(x < 0, tail, 1.0 - tail)
    return share, 0.3989422804014327 * power


@triton.jit
def _threshold(magnitude, k, C, guess):
    """A threshold that those of the C magnitudes (BLOCK) reach which are among the k largest or tie with the k-th."""
    high = tl.minimum(tl.max(magnitude, 0), 0x7FFFFFFE) + 1  # of NaN the last pattern: one more would overflow
    low, n_low, n_high = high * 0, high * 0 + C, high * 0
    probe, step, turn = high - guess, guess // 4 + 1, 0
    while high - low > 1:
        probe = tl.minimum(tl.maximum(probe, low + 1), high - 1)
        n = tl.sum((magnitude >= probe).to(tl.int32), 0)
        enough = n >= k
        low, n_low = tl.where(enough, probe, low), tl.where(enough, n, n_low)
        high, n_high = tl.where(enough, high, probe), tl.where(enough, n_high, n)
        high = tl.where(n == k, low + 1, high)
        share = (n_low - k).to(tl.float32) / tl.maximum(n_low - n_high, 1).to(tl.float32)
        probe = low + ((high - low).to(tl.float32) * share).to(tl.int32)
        # what is known of one end only is left behind in growing steps; and interpolation may creep
        probe = tl.where(turn % 4 == 3, low + (high - low) // 2, probe)
        probe = tl.where(n_high == 0, low + step, probe)
        probe = tl.where(low == 0, high - step, probe)
        step = tl.minimum(step * 2, 0x20000000)
        turn += 1
    return tl.maximum(low, 1)  # zeros are not kept: gradient reaches at most k entries


@triton.jit
def _store_mask(mask_ptr, row, kept, C, BLOCK: tl.constexpr):
    bits = tl.reshape(kept.to(tl.int32), [BLOCK // 8, 8]) << tl.arange(0, 8)[None, :]
    byte, width = tl.arange(0, BLOCK // 8), (C + 7) // 8
    tl.store(mask_ptr + row * width + byte, tl.sum(bits, 1).to(tl.uint8), mask=byte < width)


@triton.jit
def _load_mask(mask_ptr, row, C, BLOCK: tl.constexpr):
    byte, width = tl.arange(0, BLOCK // 8), (C + 7) // 8
    packed = tl.load(mask_ptr + row * width + byte, mask=byte < width, other=0).to(tl.int32)
    return tl.reshape((packed[:, None] >> tl.arange(0, 8)[None, :]) & 1, [BLOCK]) != 0


@triton.jit(do_not_specialize=["k", "guess"])
def _topk_forward(
    x_ptr, y_ptr, mask_ptr, k, C, x_stride, guess, BITS: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    y = tl.load(x_ptr + row * x_stride + channel, mask=inside, other=0.0)
    if GELU:
        wide = y.to(tl.float32)
        share, _ = _normal(wide, BITS == 31)
        y = (wide * share).to(y.dtype)
    magnitude = tl.where(inside, _magnitude(y, BITS), -1)
    kept = magnitude >= _threshold(magnitude, k, C, guess)
    tl.store(y_ptr + row * C + channel, tl.where(kept, y, 0.0).to(y.dtype), mask=inside)
    _store_mask(mask_ptr, row, kept, C, BLOCK)


@triton.jit(do_not_specialize=["k", "guess"])
def _add_topk_forward(
    x_ptr, stream_ptr, y_ptr, mask_ptr, k, C, x_stride, guess, stream_stride, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    x = tl.load(x_ptr + row * x_stride + channel, mask=inside, other=0.0)
    magnitude = tl.where(inside, _magnitude(x, BITS), -1)
    kept = magnitude >= _threshold(magnitude, k, C, guess)
    stream = tl.load(stream_ptr + row * stream_stride + channel, mask=inside, other=0.0)
    added = stream + tl.where(kept, x, 0.0).to(stream.dtype)
    tl.store(y_ptr + row * C + channel, added, mask=inside)
    _store_mask(mask_ptr, row, kept, C, BLOCK)


@triton.jit(do_not_specialize=["k", "guess"])
def _norm_topk_forward(
    x_ptr, y_ptr, mask_ptr, scale_ptr, k, C, x_stride, guess, eps, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    x = tl.load(x_ptr + row * x_stride + channel, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / C + eps)
    y = (x * scale).to(y_ptr.dtype.element_ty)
    magnitude = tl.where(inside, _magnitude(y, BITS), -1)
    kept = magnitude >= _threshold(magnitude, k, C, guess)
    tl.store(y_ptr + row * C + channel, tl.where(kept, y, 0.0).to(y.dtype), mask=inside)
    tl.store(scale_ptr + row, scale)
    _store_mask(mask_ptr, row, kept, C, BLOCK)


@triton.jit
def _masked_backward(grad_ptr, mask_ptr, out_ptr, C, grad_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    grad = tl.load(grad_ptr + row * grad_stride + channel, mask=inside, other=0.0)
    kept = _load_mask(mask_ptr, row, C, BLOCK)
    tl.store(out_ptr + row * C + channel, tl.where(kept, grad, 0.0).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_topk_backward(grad_ptr, x_ptr, mask_ptr, out_ptr, C, grad_stride, x_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    grad = tl.load(grad_ptr + row * grad_stride + channel, mask=inside, other=0.0)
    slope = tl.where(_load_mask(mask_ptr, row, C, BLOCK), grad, 0.0).to(tl.float32)
    x = tl.load(x_ptr + row * x_stride + channel, mask=inside, other=0.0).to(tl.float32)
    share, density = _normal(x, x_ptr.dtype.element_ty == tl.float32)
    slope = slope * (share + x * density)
    tl.store(out_ptr + row * C + channel, slope.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _norm_topk_backward(grad_ptr, x_ptr, mask_ptr, scale_ptr, out_ptr, C, grad_stride, x_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    grad = tl.load(grad_ptr + row * grad_stride + channel, mask=inside, other=0.0)
    slope = tl.where(_load_mask(mask_ptr, row, C, BLOCK), grad, 0.0).to(tl.float32)
    scale = tl.load(scale_ptr + row)
    normed = tl.load(x_ptr + row * x_stride + channel, mask=inside, other=0.0).to(tl.float32) * scale
    slope = scale * (slope - normed * (tl.sum(slope * normed, 0) / C))
    tl.store(out_ptr + row * C + channel, slope.to(out_ptr.dtype.element_ty), mask=inside)


_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_CHOSEN = (("bf16", 64), ("bf16", 300), ("bf16", 1024), ("bf16", 2048), ("bf16", 8192), ("bf16", WIDEST),
           ("fp16", 2048), ("fp32", 64), ("fp32", 2048), ("fp32", WIDEST))  # fmt: skip


def topk_variants() -> list[Variant]:
    """What is compiled to prove that these kernels compile: types x widths, each kernel, both directions."""
    return [variant for name, width in _CHOSEN for variant in _variants_of(name, width)]


def _variants_of(name: str, width: int) -> list[Variant]:
    block = _block(width)
    search = {"BITS": _MAGNITUDE_BITS[_TYPES[name]], "BLOCK": block}
    row, sizes = {"C": "i32", "x_stride": "i32"}, {"C": "i32", "grad_stride": "i32"}
    looked_for = {"k": "i32"} | row | {"guess": "i32"}
    x, wide = {"x_ptr": f"*{name}"}, {"x_ptr": "*fp32"}
    y, mask, scale = {"y_ptr": f"*{name}"}, {"mask_ptr": "*u8"}, {"scale_ptr": "*fp32"}
    grad, out = {"grad_ptr": f"*{name}"}, {"out_ptr": f"*{name}"}
    # real calls have sizes that are multiples of 16 wherever the width is one
    aligned = ("C", "x_stride", "grad_stride", "stream_stride") if width % 16 == 0 else ()

    def forward(label: str, kernel: Any, signature: dict[str, str], **constants: Any) -> Variant:
        warps = _warps(block, "forward")
        return Variant(f"{label} {name} {width} forward", kernel, signature, search | constants, warps, aligned)

    def backward(label: str, kernel: Any, signature: dict[str, str]) -> Variant:
        warps = _warps(block, "backward")
        return Variant(f"{label} {name} {width} backward", kernel, signature, {"BLOCK": block}, warps, aligned)

    added = x | {"stream_ptr": "*fp32", "y_ptr": "*fp32"} | mask | looked_for | {"stream_stride": "i32"}
    return [
        forward("topk", _topk_forward, x | y | mask | looked_for, GELU=False),
        backward("topk", _masked_backward, grad | mask | out | sizes),
        forward("gelu_topk", _topk_forward, x | y | mask | looked_for, GELU=True),
        backward("gelu_topk", _gelu_topk_backward, grad | x | mask | out | sizes | row),
        forward("norm_topk", _norm_topk_forward, wide | y | mask | scale | looked_for | {"eps": "fp32"}),
        backward("norm_topk", _norm_topk_backward, grad | wide | mask | scale | {"out_ptr": "*fp32"} | sizes | row),
        forward("add_topk", _add_topk_forward, added),
        backward("add_topk", _masked_backward, {"grad_ptr": "*fp32"} | mask | out | sizes),
    ]
