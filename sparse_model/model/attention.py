"""Causal attention of many small heads; the CPU's in bfloat16 and the GPU's have code of their own.

PyTorch's CPU kernels for `scaled_dot_product_attention` spend most of a sparse model's step in their backward pass:
with 16 channels per head there is little to multiply. Queries in blocks, each against the keys it may see, are plain
batched products, and those are fast in bfloat16 (benchmarks/kernels.py).

Shapes: B batch, H heads, T time, K = d_head, S queries of a block, E keys they may see.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WIDEST_HEAD_ON_GPU = 64
"""Channels per head up to which our GPU kernel is used; the library's are made for wide ones."""

QUERY_BLOCK = 64
"""Queries per block: fewer waste less above the diagonal, more make larger products."""


def side_by_side(qkv: Tensor, d_head: int, sink: Tensor | None) -> Tensor:
    """`attention` of q, k and v that lie side by side, (B, T, 3, H * K): without copies where there is a kernel."""
    if _has_kernel(qkv, d_head):
        from sparse_model.kernels.attention import triton_attention  # triton comes with torch's GPU builds only

        mixed: Tensor = triton_attention(qkv.view(*qkv.shape[:-1], -1, d_head), sink)
        return mixed.flatten(-2)
    q, k, v = qkv.unbind(-2)
    return attention(q, k, v, d_head, sink)


def attention(q: Tensor, k: Tensor, v: Tensor, d_head: int, sink: Tensor | None) -> Tensor:
    """Causal softmax attention (B, T, H * K) of q, k, v (B, T, H * K) for heads of K = d_head channels.

    With a sink (H), that logit takes its share of each head's softmax and gives nothing.
    """
    if _has_kernel(q, d_head):
        return side_by_side(torch.stack([q, k, v], dim=-2), d_head, sink)
    q, k, v = (z.view(*z.shape[:-1], -1, d_head).transpose(1, 2) for z in (q, k, v))
    mixed = causal_attention(q, k, v) if sink is None else attention_with_sink(q, k, v, sink)
    return mixed.transpose(1, 2).flatten(-2)


def _has_kernel(x: Tensor, d_head: int) -> bool:
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and d_head <= WIDEST_HEAD_ON_GPU


SINK_CHANNELS = 8
"""More channels of q, k and v with a sink: fused kernels want a multiple of eight."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Softmax attention (B, H, T, K) of q, k, v (B, H, T, K), causal, scores scaled by 1/sqrt(K) or `scale`.

    On CPU in bfloat16 scores are rounded to bfloat16 before the softmax, as eager attention does under autocast.
    """
    if q.dtype is torch.bfloat16 and not q.is_cuda:
        scale = scale or 1 / math.sqrt(q.shape[-1])
        mixed: Tensor = _BlockedAttention.apply(q, k, v, scale)  # type: ignore[no-untyped-call]
        return mixed
    if q.is_cuda:
        # the library's backward pass in float32 fails where they share their memory
        q, k, v = (z.clone(memory_format=torch.contiguous_format) for z in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def attention_with_sink(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    """`causal_attention` in which the sink (H), a logit per head, takes its share of the softmax and gives nothing.

    The sink is one more token in front, whose value is zero, so any fused kernel does: channels of its own, which are 1
    in every query and 0 in every other key, give it its logit.
    """
    B, H, _, K = q.shape
    logit = (sink.float() * math.sqrt(K)).unsqueeze(-1)
    high = logit.to(q.dtype)
    # what rounding leaves of it goes into two more channels
    middle = (logit - high).detach().to(q.dtype)
    low = (logit - high.float() - middle.float()).detach().to(q.dtype)
    parts = torch.cat([high, middle, low], dim=-1)
    front = F.pad(parts, (K, SINK_CHANNELS - 3)).view(1, H, 1, -1).expand(B, -1, -1, -1)
    q = F.pad(F.pad(q, (0, 3), value=1.0), (0, SINK_CHANNELS - 3, 1, 0))
    k = torch.cat([front, F.pad(k, (0, SINK_CHANNELS))], dim=-2)
    mixed = causal_attention(q, k, F.pad(v, (0, SINK_CHANNELS, 1, 0)), 1 / math.sqrt(K))
    return mixed[..., 1:, :K]


class _BlockedAttention(torch.autograd.Function):
    """Keeps the shares of the softmax, (B, H, S, E) per block; its backward pass is three products a block."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = (q * scale).contiguous(), k.contiguous(), v.contiguous()
        blocks = _blocks(q.shape[-2])
        # only the last S keys of a block can lie in a query's future
        future = torch.full((QUERY_BLOCK, QUERY_BLOCK), -math.inf, dtype=q.dtype).triu_(1)
        mixed, shares = torch.empty_like(q), []
        for start, end in blocks:
            scores = q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)
            scores[..., start:end] += future[: end - start, : end - start]
            shares.append(scores.softmax(-1))
            mixed[:, :, start:end] = shares[-1] @ v[:, :, :end]
        ctx.save_for_backward(q, k, v, *shares)
        ctx.scale = scale
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *shares = ctx.saved_tensors
        grad = grad.contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (start, end), share in zip(_blocks(q.shape[-2]), shares, strict=True):
            upstream = grad[:, :, start:end]
            grad_v[:, :, :end] += share.transpose(-1, -2) @ upstream
            grad_share = upstream @ v[:, :, :end].transpose(-1, -2)
            grad_scores = torch._softmax_backward_data(grad_share, share, -1, share.dtype)
            grad_q[:, :, start:end] = grad_scores @ k[:, :, :end]
            grad_k[:, :, :end] += grad_scores.transpose(-1, -2) @ q[:, :, start:end]
        return grad_q.mul_(ctx.scale), grad_k, grad_v, None


def _blocks(length: int) -> list[tuple[int, int]]:
    """(first query, end) of each block."""
    return [(start, min(start + QUERY_BLOCK, length)) for start in range(0, length, QUERY_BLOCK)]
