"""AbsTopK where part of the channels are constants: which values are among the k largest magnitudes.

Shapes: S values to be told of, R values that compete with the constants, C constants.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def survive(rivals: Tensor, value: Tensor, k: int, constants: Tensor | None) -> Tensor:
    """Where value (..., S) is among the k largest magnitudes of rivals (..., R) and constants, ties included."""
    threshold = kth_largest(rivals.detach().abs(), constants, k)
    return value.detach().abs() >= threshold


def kth_largest(magnitude: Tensor, constants: Tensor | None, k: int) -> Tensor:
    """(..., 1) the k-th largest of each row of magnitude (..., R) joined with constants (C,), descending.

    Of the k largest, i come from the row and k - i from the constants; the smaller of the row's i-th and the
    constants' (k - i)-th is largest at the right i, which saves sorting the constants into every row.
    """
    R, spare = magnitude.shape[-1], 0 if constants is None else len(constants)
    if constants is None or spare == 0:
        return _partitioned(magnitude, R - k)[..., R - k : R - k + 1]
    fewest, most = max(1, k - spare), min(k, R)
    fixed = F.pad(constants, (1, 0), value=math.inf)[k - most : k - fewest + 1]
    best = torch.minimum(_ascending(magnitude)[..., R - most : R - fewest + 1], fixed).amax(-1, keepdim=True)
    return best if spare < k else best.clamp_min(float(constants[k - 1]))


# numpy sorts short rows of integers some 30 times faster than torch does on a CPU; floats >= 0 order as their bits
def _ascending(magnitude: Tensor) -> Tensor:
    if magnitude.is_cuda:
        return magnitude.sort(dim=-1).values
    return torch.from_numpy(np.sort(magnitude.view(torch.int32).numpy(), axis=-1)).view(torch.float32)


def _partitioned(magnitude: Tensor, index: int) -> Tensor:
    if magnitude.is_cuda:
        return magnitude.sort(dim=-1).values
    return torch.from_numpy(np.partition(magnitude.view(torch.int32).numpy(), index, axis=-1)).view(torch.float32)
