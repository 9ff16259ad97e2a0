"""Causal attention of many small heads, fast on CPU in bfloat16.

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

BLOCK = 64
"""Queries per block: fewer waste less above the diagonal, more make larger products."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention (B, H, T, K) of q, k, v (B, H, T, K), causal, scores scaled by 1/sqrt(K).

    On CPU in bfloat16 scores are rounded to bfloat16 before the softmax, as eager attention does under autocast.
    """
    if q.dtype is torch.bfloat16 and not q.is_cuda:
        mixed: Tensor = _BlockedAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
        return mixed
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class _BlockedAttention(torch.autograd.Function):
    """Keeps the shares of the softmax, (B, H, S, E) per block; its backward pass is three products a block."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = 1 / math.sqrt(q.shape[-1])
        q, k, v = (q * scale).contiguous(), k.contiguous(), v.contiguous()
        blocks = _blocks(q.shape[-2])
        # only the last S keys of a block can lie in a query's future
        future = torch.full((BLOCK, BLOCK), -math.inf, dtype=q.dtype).triu_(1)
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
        return grad_q.mul_(ctx.scale), grad_k, grad_v


def _blocks(length: int) -> list[tuple[int, int]]:
    """(first query, end) of each block."""
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
