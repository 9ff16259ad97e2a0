"""What the projection (METHOD 3) keeps of a matrix: the one definition, and the slow obvious way to it.

Magnitudes are ordered as the bits of float32 without their sign: whatever is not a number counts as larger than
infinity. Of equal magnitudes the one of lower index (row-major) counts as larger. Kept are exactly `budget` entries:

1. of each *lane*, a row or with `by_column` a column, its `min_alive` largest;
2. the largest of all others, until the budget is reached.

The same weights so always leave the same ones. The budget is never below what 1. takes. Each backend leaves exactly
this: `cpu_projection` on a CPU, `kernels.selection` on a GPU, `shard_projection` where rows are spread over workers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Matrix(NamedTuple):
    """What is to be projected: contiguous float32 weights (R, C), the budget, and what each lane keeps at least."""

    weight: Tensor
    budget: int
    min_alive: int = 0
    by_column: bool = False


def magnitudes(weight: Tensor) -> Tensor:
    """Integers in the order of the magnitudes."""
    return weight.contiguous().view(torch.int32) & torch.iinfo(torch.int32).max


def keep_mask(weight: Tensor, budget: int, min_alive: int = 0, by_column: bool = False) -> Tensor:
    """Boolean mask (R, C) of what is kept: the reference that every backend is held to."""
    magnitude = magnitudes(weight)
    keep = torch.zeros_like(magnitude, dtype=torch.bool)
    lanes, keep_lanes = (magnitude.T, keep.T) if by_column else (magnitude, keep)
    if min_alive:
        best = lanes.sort(dim=1, descending=True, stable=True).indices[:, :min_alive]
        keep_lanes.scatter_(1, best, True)
    order = magnitude.flatten().sort(descending=True, stable=True).indices
    others = order[~keep.flatten()[order]]
    keep.view(-1)[others[: max(0, budget - int(keep.sum()))]] = True
    return keep
