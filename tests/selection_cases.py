"""Matrices on which every backend of the selection must leave what the reference keeps: ties, zeros, NaN and more."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from sparse_model.sparsity.cpu_projection import CPU_SAMPLED
from sparse_model.sparsity.selection import Matrix

SHAPES = [(1, 1), (1, 7), (7, 1), (3, 5), (11, 9), (4, 300)]
LARGE = (96, 128)
"""More entries than a matrix that the CPU's backend does not sample."""


def _not_numbers(weight: Tensor) -> Tensor:
    """A tenth is not a number, of different bits and both signs."""
    other = torch.arange(weight.numel(), dtype=torch.int32).view_as(weight)
    bits = torch.where(weight > 0, 0x7F800001, -0x7FFFFF).int() + other
    return torch.where(weight.abs() > 1.6, bits.view(torch.float32), weight)


def _misleading(weight: Tensor, factor: float) -> Tensor:
    """What the CPU's backend samples is unlike the rest."""
    weight.view(-1)[::CPU_SAMPLED] *= factor
    return weight


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda w: w,
    "ties": lambda w: w.mul(1.5).round() / 7,
    "zeros": lambda w: w * (torch.rand(w.shape) < 0.2),
    "uneven": lambda w: w * torch.randn(w.shape[0], 1).exp() * torch.randn(w.shape[1]).exp(),
    "uneven ties": lambda w: (w * torch.randn(w.shape[0], 1).exp() * torch.randn(w.shape[1]).exp()).round(),
    "equal rows": lambda w: w[:1].expand_as(w).contiguous(),
    "equal columns": lambda w: w[:, :1].expand_as(w).contiguous(),
    "not a number": _not_numbers,
    "infinite": lambda w: torch.where(w.abs() > 1, w.sign() * math.inf, w),
    "tiny": lambda w: w * 1e-42,
    "all zero": torch.zeros_like,
    "all one": torch.ones_like,
    "sample too large": lambda w: _misleading(w, 1e3),
    "sample too small": lambda w: _misleading(w, 1e-3),
}


def cases() -> dict[str, Matrix]:
    """The same matrices, by what they are, at every call."""
    made = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for shape, (name, change) in product([*SHAPES, LARGE], VALUES.items()):
            weight = change(torch.randn(shape))
            for k, min_alive, by_column in _budgets(shape):
                what = f"{name} {shape[0]}x{shape[1]} keep {k} alive {min_alive} {'columns' if by_column else 'rows'}"
                made[what] = Matrix(weight.clone(), k, min_alive, by_column)
    return made


def _budgets(shape: tuple[int, int]) -> set[tuple[int, int, bool]]:
    """(budget, minimum, by column) from nothing to everything, as tight as it may be and with room."""
    numel = shape[0] * shape[1]
    found = {(k, 0, False) for k in (0, 1, numel // 16, numel // 2, numel - 1, numel)}
    for by_column in (False, True):
        lanes = shape[1 if by_column else 0]
        for min_alive in {1, 3, numel // lanes} if numel < 1000 else {1, 3}:
            least = min_alive * lanes
            if min_alive <= numel // lanes:
                found |= {(k, min_alive, by_column) for k in (least, (least + numel) // 2)}
    return found
