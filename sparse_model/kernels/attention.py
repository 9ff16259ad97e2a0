"""Causal attention of many small heads on a GPU, with or without a sink.

With 16 channels per head there is little to multiply, and the library's kernels, made for 64 and more, spend most of
their time on channels that are not there. Scores are never stored: a program holds a block of queries (or of keys, for
their gradients) and goes through the blocks of the others; the exponentials' sums are kept for the backward pass.

Shapes: B batch, H heads, T time, K channels per head; blocks of BLOCK queries or keys.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_model.kernels.ahead import Variant

BLOCK = 64
"""Queries or keys that a program looks at together."""


@torch.compiler.disable
def triton_attention(qkv: Tensor, sink: Tensor | None = None) -> Tensor:
    """Causal softmax attention (B, T, H, K) of queries, keys and values side by side, qkv (B, T, 3, H, K) of 16 bits.

    Scores are scaled by 1/sqrt(K). With a sink (H), that logit takes its share of the softmax and gives nothing.
    """
    mixed: Tensor = _Attention.apply(qkv, sink)
    return mixed


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, sink: Tensor | None) -> Tensor:
        qkv = qkv.contiguous()
        B, T, _, H, K = qkv.shape
        q, k, v = qkv.unbind(2)
        mixed = torch.empty(B, T, H, K, dtype=qkv.dtype, device=qkv.device)
        sums = torch.empty(B, H, T, dtype=torch.float32, device=qkv.device)
        logits = sums if sink is None else sink.detach().float()
        _attention_forward[_grid(qkv)](
            q,
            k,
            v,
            mixed,
            sums,
            logits,
            *_strides(q, k, v, mixed),
            H,
            T,
            K,
            **_constants(K, "forward"),
            SINK=sink is not None,
        )
        ctx.save_for_backward(qkv, mixed, sums, *([] if sink is None else [logits]))
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        qkv, mixed, sums, *logits = ctx.saved_tensors
        grad = grad.contiguous()
        _, T, _, H, K = map(int, qkv.shape)
        grad_qkv, dots = torch.empty_like(qkv), torch.empty_like(sums)
        q, k, v = qkv.unbind(2)
        grad_q, grad_k, grad_v = grad_qkv.unbind(2)
        _attention_query_grads[_grid(qkv)](
            q, k, v, mixed, grad, sums, dots, grad_q,
            *_strides(q, k, v, mixed, grad, grad_q), H, T, K, **_constants(K, "backward")
        )  # fmt: skip
        _attention_key_grads[_grid(qkv)](
            q, k, v, grad, sums, dots, grad_k, grad_v,
            *_strides(q, k, v, grad, grad_k, grad_v), H, T, K, **_constants(K, "backward")
        )  # fmt: skip
        grad_sink = None
        if logits:
            # the sink's share of each row's softmax, which that much of the result would gain by less of it
            grad_sink = -((logits[0][:, None] - sums).exp_() * dots).sum((0, 2))
        return grad_qkv, grad_sink


def _grid(qkv: Tensor) -> tuple[int, int]:
    return triton.cdiv(qkv.shape[1], BLOCK), qkv.shape[0] * qkv.shape[3]


def _strides(*tensors: Tensor) -> list[int]:
    """Of batch, heads and time, for each tensor (B, T, H, K)."""
    return [tensor.stride(axis) for tensor in tensors for axis in (0, 2, 1)]


def _warps(K: int, direction: str) -> int:
    """Two warps are faster for what fits their registers."""
    return 2 if direction == "backward" and K <= 16 else 4


def _constants(K: int, direction: str) -> dict[str, Any]:
    return {
        "SCALE": 1 / math.sqrt(K),
        "BLOCK": BLOCK,
        "WIDTH": max(16, triton.next_power_of_2(K)),
        "num_warps": _warps(K, direction),
    }


@triton.jit
def _block(pointer, head, stride_b, stride_h, stride_t, H, T, K, start, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Rows start .. start + BLOCK of one head, (BLOCK, WIDTH): addresses, and which are there."""
    row, channel = start + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    begin = pointer + (head // H).to(tl.int64) * stride_b + (head % H).to(tl.int64) * stride_h
    return begin + row[:, None].to(tl.int64) * stride_t + channel[None, :], (row < T)[:, None] & (channel < K)[None, :]


@triton.jit
def _attention_forward(
    q_ptr, k_ptr, v_ptr, out_ptr, sums_ptr, sink_ptr,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, ob, oh, ot, H, T, K,
    SCALE: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, SINK: tl.constexpr,
):  # fmt: skip
    start, head = tl.program_id(0) * BLOCK, tl.program_id(1)
    place, there = _block(q_ptr, head, qb, qh, qt, H, T, K, start, BLOCK, WIDTH)
    q = tl.load(place, mask=there, other=0.0)
    query = start + tl.arange(0, BLOCK)
    if SINK:
        top = tl.zeros([BLOCK], tl.float32) + tl.load(sink_ptr + head % H)
        total = tl.full([BLOCK], 1.0, tl.float32)
    else:
        top = tl.full([BLOCK], -1e30, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, WIDTH], tl.float32)
    for first in range(0, start + BLOCK, BLOCK):
        place, there = _block(k_ptr, head, kb, kh, kt, H, T, K, first, BLOCK, WIDTH)
        k = tl.load(place, mask=there, other=0.0)
        place, there = _block(v_ptr, head, vb, vh, vt, H, T, K, first, BLOCK, WIDTH)
        v = tl.load(place, mask=there, other=0.0)
        key = first + tl.arange(0, BLOCK)
        scores = tl.dot(q, tl.trans(k)) * SCALE
        scores = tl.where(query[:, None] >= key[None, :], scores, -1e30)
        new_top = tl.maximum(top, tl.max(scores, 1))
        shares = tl.exp(scores - new_top[:, None])
        fade = tl.exp(top - new_top)
        total = total * fade + tl.sum(shares, 1)
        mixed = mixed * fade[:, None] + tl.dot(shares.to(v.dtype), v)
        top = new_top
    place, there = _block(out_ptr, head, ob, oh, ot, H, T, K, start, BLOCK, WIDTH)
    tl.store(place, (mixed / total[:, None]).to(out_ptr.dtype.element_ty), mask=there)
    tl.store(sums_ptr + head.to(tl.int64) * T + query, top + tl.log(total), mask=query < T)


@triton.jit
def _attention_query_grads(
    q_ptr, k_ptr, v_ptr, out_ptr, grad_ptr, sums_ptr, dots_ptr, grad_q_ptr,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, ob, oh, ot, gb, gh, gt, xb, xh, xt, H, T, K,
    SCALE: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries; and for each query the product of the result with its gradient."""
    start, head = tl.program_id(0) * BLOCK, tl.program_id(1)
    place, there = _block(q_ptr, head, qb, qh, qt, H, T, K, start, BLOCK, WIDTH)
    q = tl.load(place, mask=there, other=0.0)
    place, there = _block(out_ptr, head, ob, oh, ot, H, T, K, start, BLOCK, WIDTH)
    out = tl.load(place, mask=there, other=0.0)
    place, there = _block(grad_ptr, head, gb, gh, gt, H, T, K, start, BLOCK, WIDTH)
    grad = tl.load(place, mask=there, other=0.0)
    query = start + tl.arange(0, BLOCK)
    dots = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    line = head.to(tl.int64) * T + query
    tl.store(dots_ptr + line, dots, mask=query < T)
    sums = tl.load(sums_ptr + line, mask=query < T, other=0.0)
    grad_q = tl.zeros([BLOCK, WIDTH], tl.float32)
    for first in range(0, start + BLOCK, BLOCK):
        place, there = _block(k_ptr, head, kb, kh, kt, H, T, K, first, BLOCK, WIDTH)
        k = tl.load(place, mask=there, other=0.0)
        place, there = _block(v_ptr, head, vb, vh, vt, H, T, K, first, BLOCK, WIDTH)
        v = tl.load(place, mask=there, other=0.0)
        key = first + tl.arange(0, BLOCK)
        shares = tl.exp(tl.dot(q, tl.trans(k)) * SCALE - sums[:, None])
        shares = tl.where(query[:, None] >= key[None, :], shares, 0.0)
        slopes = shares * (tl.dot(grad, tl.trans(v)) - dots[:, None])
        grad_q += tl.dot(slopes.to(k.dtype), k)
    place, there = _block(grad_q_ptr, head, xb, xh, xt, H, T, K, start, BLOCK, WIDTH)
    tl.store(place, (grad_q * SCALE).to(grad_q_ptr.dtype.element_ty), mask=there)


@triton.jit
def _attention_key_grads(
    q_ptr, k_ptr, v_ptr, grad_ptr, sums_ptr, dots_ptr, grad_k_ptr, grad_v_ptr,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, gb, gh, gt, yb, yh, yt, zb, zh, zt, H, T, K,
    SCALE: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and of their values, from the queries at and after them."""
    start, head = tl.program_id(0) * BLOCK, tl.program_id(1)
    place, there = _block(k_ptr, head, kb, kh, kt, H, T, K, start, BLOCK, WIDTH)
    k = tl.load(place, mask=there, other=0.0)
    place, there = _block(v_ptr, head, vb, vh, vt, H, T, K, start, BLOCK, WIDTH)
    v = tl.load(place, mask=there, other=0.0)
    key = start + tl.arange(0, BLOCK)
    grad_k = tl.zeros([BLOCK, WIDTH], tl.float32)
    grad_v = tl.zeros([BLOCK, WIDTH], tl.float32)
    for first in range(start, T, BLOCK):
        place, there = _block(q_ptr, head, qb, qh, qt, H, T, K, first, BLOCK, WIDTH)
        q = tl.load(place, mask=there, other=0.0)
        place, there = _block(grad_ptr, head, gb, gh, gt, H, T, K, first, BLOCK, WIDTH)
        grad = tl.load(place, mask=there, other=0.0)
        query = first + tl.arange(0, BLOCK)
        line = head.to(tl.int64) * T + query
        sums = tl.load(sums_ptr + line, mask=query < T, other=0.0)
        dots = tl.load(dots_ptr + line, mask=query < T, other=0.0)
        # (keys, queries): transposed, so that no product needs it to be
        shares = tl.exp(tl.dot(k, tl.trans(q)) * SCALE - sums[None, :])
        shares = tl.where((query[None, :] >= key[:, None]) & (query < T)[None, :], shares, 0.0)
        grad_v += tl.dot(shares.to(grad.dtype), grad)
        slopes = shares * (tl.dot(v, tl.trans(grad)) - dots[None, :])
        grad_k += tl.dot(slopes.to(q.dtype), q)
    place, there = _block(grad_k_ptr, head, yb, yh, yt, H, T, K, start, BLOCK, WIDTH)
    tl.store(place, (grad_k * SCALE).to(grad_k_ptr.dtype.element_ty), mask=there)
    place, there = _block(grad_v_ptr, head, zb, zh, zt, H, T, K, start, BLOCK, WIDTH)
    tl.store(place, grad_v.to(grad_v_ptr.dtype.element_ty), mask=there)


def attention_variants() -> list[Variant]:
    """16 bits, heads of 16 to 64 channels, with and without a sink, both directions."""
    return [variant for kind in ("bf16", "fp16") for K in (16, 32, 64) for variant in _variants_of(kind, K)]


def _variants_of(kind: str, K: int) -> list[Variant]:
    constants = {"SCALE": 1 / math.sqrt(K), "BLOCK": BLOCK, "WIDTH": K}
    kernels = {"forward": _attention_forward, "query grads": _attention_query_grads, "key grads": _attention_key_grads}
    found = []
    for label, kernel in kernels.items():
        names = [name for name in kernel.arg_names if name not in (*constants, "SINK")]
        wide = ("sums_ptr", "sink_ptr", "dots_ptr")
        signature = {
            name: "i32" if not name.endswith("ptr") else "*fp32" if name in wide else f"*{kind}" for name in names
        }
        aligned = tuple(name for name in names if not name.endswith("ptr"))
        for sink in (False, True) if label == "forward" else (False,):
            more = {"SINK": sink} if label == "forward" else {}
            name = f"attention {kind} {K} {label}{' with a sink' if sink else ''}"
            warps = _warps(K, "forward" if label == "forward" else "backward")
            found.append(Variant(name, kernel, signature, constants | more, warps, aligned))
    return found
