"""Numbers as a page holds them: whole numbers of 16 bits in base64, each group under one scale."""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor

_STEPS = 32767


def packed(values: Tensor, scale: float) -> str:
    """Values of at most `scale` in magnitude as 16-bit little-endian numbers of steps of scale / 32767, in base64."""
    steps = (values.double() / (scale or 1.0) * _STEPS).round().clamp(-_STEPS, _STEPS)
    return base64.b64encode(steps.to(torch.int16).numpy().astype("<i2").tobytes()).decode()


def scale_of(*values: Tensor) -> float:
    """The largest magnitude in any of the tensors."""
    return max((float(v.abs().max()) for v in values if v.numel()), default=0.0)


def rounded(value: Any, digits: int = 5) -> Any:
    """The same JSON with floats of a few significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return value
