"""What is checked of tokens before a model reads them: a mistake in their axes gives wrong numbers, not an error.

Shapes: B batch, T time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig

TOKEN_TYPES = (torch.int64, torch.int32)


def check_tokens(
    tokens: object, config: ModelConfig, *, longest: int | None = None, what: str = "tokens", ids: bool = True
) -> None:
    """InputError unless these are tokens (B, T) of the vocabulary, T being at most the context (or `longest`).

    `ids`: whether to look at the ids themselves, two reductions of integers. A GPU would have to be waited for, so
    steps of training, whose tokens come from a dataset, do not; nor does anything that records gradients there.
    """
    longest = config.context if longest is None else longest
    if not isinstance(tokens, Tensor):
        raise InputError(f"{what}: a {type(tokens).__name__}; allowed: a tensor of token ids (B, T)")
    if tokens.dim() != 2:
        hint = "; one sequence is a batch of one, tokens[None]" if tokens.dim() == 1 else ""
        raise InputError(f"{what} of shape {tuple(tokens.shape)}; allowed: (B, T), batch and time{hint}")
    if tokens.numel() == 0:
        raise InputError(f"{what} of shape {tuple(tokens.shape)}; allowed: (B, T) with at least one token")
    if tokens.dtype not in TOKEN_TYPES:
        raise InputError(f"{what} of {tokens.dtype}; allowed: {', '.join(map(str, TOKEN_TYPES))}")
    if tokens.shape[1] > longest:
        raise InputError(f"{what}: sequence of {tokens.shape[1]} tokens; the model's context is {config.context}")
    if ids and not tokens.is_meta and not (tokens.is_cuda and torch.is_grad_enabled()):
        check_ids(tokens, config, what)


def check_ids(ids: Tensor, config: ModelConfig, what: str = "tokens") -> None:
    """InputError for ids (of any shape) that are not in the vocabulary."""
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= config.vocab_size:
        raise InputError(f"{what}: id {low if low < 0 else high}; allowed: 0 to {config.vocab_size - 1}")
