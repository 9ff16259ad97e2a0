"""Mean ablation: what a removed node is held at (METHOD 6).

Shapes: B batch, T time, C channels of a site.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_model.errors import InputError
from sparse_model.model.inputs import check_tokens
from sparse_model.model.sites import site_names, site_width
from sparse_model.model.transformer import SparseTransformer

SEQUENCES_AT_ONCE = 32

Means = dict[str, Tensor]
"""Site name -> (C,) float32 mean activation, on the model's device."""


class Pretraining(NamedTuple):
    """What a search takes from pretraining data: mean activations, and windows of tokens (n, T) to resample from."""

    means: Means
    text: Tensor


@torch.no_grad()
def mean_activations(model: SparseTransformer, batches: Iterable[Tensor] | Tensor) -> Means:
    """Mean of every node over all positions of all sequences: batches of tokens (B, T), or one tensor (n, T) of all.

    Taken of the model's own forward pass, AbsTopK included, in float32 as circuits are whatever the model was
    trained in. InputError for tokens of other axes, and for no token at all.
    """
    if isinstance(batches, Tensor):
        check_tokens(batches, model.config, what="text")
        batches = torch.split(batches, SEQUENCES_AT_ONCE)
    device = model.embedding.device
    sums = {name: _zeros(model, name, torch.float64) for name in site_names(model.config)}
    positions = 0

    def add(name: str, x: Tensor) -> Tensor:
        sums[name] += x.flatten(0, -2).sum(0, dtype=torch.float64)
        return x

    with float32_activations(model):
        for tokens in batches:
            model.final(tokens.to(device), add)
            positions += tokens.numel()
    if positions == 0:
        raise InputError("mean activations of 0 tokens; allowed: at least one batch of tokens")
    return {name: (total / positions).float() for name, total in sums.items()}


@contextmanager
def float32_activations(model: SparseTransformer) -> Iterator[None]:
    """Circuits are computed in float32, whatever the model was trained in."""
    dtype, model.compute_dtype = model.compute_dtype, torch.float32
    try:
        yield
    finally:
        model.compute_dtype = dtype


def _zeros(model: SparseTransformer, name: str, dtype: torch.dtype) -> Tensor:
    return torch.zeros(site_width(model.config, name), dtype=dtype, device=model.embedding.device)
