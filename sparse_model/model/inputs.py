"""What is checked of tokens before a model reads them: a mistake in their axes gives wrong numbers, not an error.

Shapes: B batch, T time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig

TOKEN_TYPES = (torch.int64, torch.int32)


def check_tokens(tokens: object, config: ModelConfig, *, longest: int | None = None, what: str = "tokens") -> None:
    """InputError unless these are tokens (B, T) of the vocabulary, T being at most the context (or `longest`).

    Two reductions of integers, beside a forward pass. On a GPU they would have to be waited for: there ids are checked
    outside of training only.
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
    if _are_ids_at_hand(tokens):
        check_ids(tokens, config, what)


def check_ids(ids: Tensor, config: ModelConfig, what: str = "tokens") -> None:
    """InputError for ids (of any shape) that are not in the vocabulary."""
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= config.vocab_size:
        raise InputError(f"{what}: id {low if low < 0 else high}; allowed: 0 to {config.vocab_size - 1}")


def _are_ids_at_hand(tokens: Tensor) -> bool:
    if tokens.is_meta or torch.compiler.is_compiling():
        return False
    return not (tokens.is_cuda and (torch.is_grad_enabled() or torch.cuda.is_current_stream_capturing()))
