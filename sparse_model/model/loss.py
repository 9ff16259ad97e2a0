"""Next-token cross-entropy straight from the last activations: the logits exist a block of positions at a time.

Shapes: N positions (batch and time flattened), R positions of a block, D channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CPU_BLOCK = 256
"""Positions at a time on CPU: their logits stay in the cache over a dozen passes."""

GPU_BLOCK = 8192
"""Positions at a time on a GPU: few kernels, and no more memory for the logits at any batch size."""


def next_token_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of logits (..., V) against targets (...)."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


def unembedding_loss(
    final: Tensor,
    weight: Tensor,
    bias: Tensor,
    bigram: Tensor | None,
    tokens: Tensor,
    targets: Tensor,
    by_rows: bool = False,
) -> Tensor:
    """Mean of `next_token_loss` of the logits final @ weight.T + bias + bigram[tokens], and its gradient, in one go.

    final (N, D) in the compute dtype; weight (V, D), bias (V) and bigram (V, V) in float32; tokens, targets (N). With
    `by_rows`, on a CPU, the bigram table's gradient is a sparse tensor of the rows of the tokens that there are.
    """
    options = final, weight, bias, bigram, tokens, targets, by_rows
    loss: Tensor = _UnembeddingLoss.apply(*options)  # type: ignore[no-untyped-call]
    return loss


class _UnembeddingLoss(torch.autograd.Function):
    """Gradients are computed in the forward pass, while a block's logits are at hand, and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        final: Tensor,
        weight: Tensor,
        bias: Tensor,
        bigram: Tensor | None,
        tokens: Tensor,
        targets: Tensor,
        by_rows: bool,
    ) -> Tensor:
        low = weight.to(final.dtype)
        size = GPU_BLOCK if final.is_cuda else CPU_BLOCK
        ctx.grads, wanted = None, any(ctx.needs_input_grad)
        loss = torch.zeros((), device=final.device)
        grad_low = final.new_empty(len(final), len(weight)) if wanted else None
        grad_bias, grad_bigram, place = torch.zeros_like(bias), None, tokens
        ctx.seen = None
        if bigram is not None and wanted:
            if by_rows:
                ctx.seen, place = _distinct(tokens)
            grad_bigram = bigram.new_zeros(len(bigram) if ctx.seen is None else len(ctx.seen), len(bigram))
        for start in range(0, len(final), size):
            rows = slice(start, start + size)
            logits = F.linear(final[rows], low).float().add_(bias)
            if bigram is not None:
                logits.add_(F.embedding(tokens[rows], bigram))
            block_loss, grad = _cross_entropy(logits, targets[rows], 1 / len(final))
            loss += block_loss
            if grad_low is not None:
                grad_low[rows] = grad
                grad_bias += grad.sum(0)
                if grad_bigram is not None:
                    grad_bigram.index_add_(0, place[rows], grad)
        if grad_low is not None:
            grad_weight = (grad_low.T @ final).float()
            ctx.grads = (grad_low @ low, grad_weight, grad_bias, grad_bigram)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("a second backward pass through the loss; run the forward pass again for another")
        grads, ctx.grads = ctx.grads, None  # ours alone, so scaled in place
        if not upstream.is_cpu or upstream.numpy() != 1:  # a look at a GPU's number would wait for it
            for grad in grads:
                if grad is not None:
                    grad.mul_(upstream)
        *others, grad_bigram = grads
        if ctx.seen is not None:
            V = grad_bigram.shape[1]
            grad_bigram = torch.sparse_coo_tensor(
                ctx.seen.unsqueeze(0), grad_bigram, (V, V), is_coalesced=True, check_invariants=False
            )
        return *others, grad_bigram, None, None, None


def _distinct(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct tokens of some on a CPU, and for each of them (N) its place among these."""
    seen, place = np.unique(tokens.numpy(), return_inverse=True)
    return torch.from_numpy(seen), torch.from_numpy(place)


def _cross_entropy(logits: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Summed loss of a block times `share`, and its gradient (R, V) in the memory of the logits (R, V)."""
    targets = targets.unsqueeze(-1)
    logits.sub_(logits.amax(-1, keepdim=True))
    chosen = logits.gather(-1, targets)
    total = logits.exp_().sum(-1, keepdim=True)
    grad = logits.mul_(share / total)
    grad.scatter_add_(-1, targets, torch.full_like(total, -share))
    return (total.log() - chosen).sum() * share, grad
