"""Next-token cross-entropy straight from the last activations: the largest tensors of a step are touched once.

Shapes: N positions (batch and time flattened), D channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def next_token_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of logits (..., V) against targets (...)."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


def unembedding_loss(
    final: Tensor, weight: Tensor, bias: Tensor, bigram: Tensor | None, tokens: Tensor, targets: Tensor
) -> Tensor:
    """Mean of `next_token_loss` of the logits final @ weight.T + bias + bigram[tokens], and its gradient, in one go.

    final (N, D) in the compute dtype; weight (V, D), bias (V) and bigram (V, V) in float32; tokens, targets (N).
    """
    loss: Tensor = _UnembeddingLoss.apply(final, weight, bias, bigram, tokens, targets)  # type: ignore[no-untyped-call]
    return loss


class _UnembeddingLoss(torch.autograd.Function):
    """The gradient of the logits is computed in their own memory during the forward pass, so none else is made."""

    @staticmethod
    def forward(
        ctx: Any, final: Tensor, weight: Tensor, bias: Tensor, bigram: Tensor | None, tokens: Tensor, targets: Tensor
    ) -> Tensor:
        low = weight.to(final.dtype)
        logits = F.linear(final, low).float().add_(bias)
        if bigram is not None:
            logits.add_(bigram[tokens])
        peak = logits.amax(-1, keepdim=True)
        chosen = logits.gather(-1, targets.unsqueeze(-1)).sub_(peak)
        total = logits.sub_(peak).exp_().sum(-1, keepdim=True)
        loss = (total.log() - chosen).mean()
        probabilities = logits.div_(total)
        probabilities.scatter_add_(-1, targets.unsqueeze(-1), -torch.ones_like(total))
        ctx.save_for_backward(final, low, probabilities.div_(len(targets)), tokens)
        ctx.has_bigram = bigram is not None
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        final, low, grad, tokens = ctx.saved_tensors
        grad = grad.mul_(upstream)  # ours alone, so in place; a second backward would need the forward again
        grad_low = grad.to(final.dtype)
        grad_bigram = None
        if ctx.has_bigram:
            grad_bigram = grad.new_zeros(grad.shape[-1], grad.shape[-1]).index_add_(0, tokens, grad)
        return grad_low @ low, (grad_low.T @ final).float(), grad.sum(0), grad_bigram, None, None
