"""Scale and shift of the two-answer logits, fitted before a loss is compared with the target (METHOD 6).

A *margin* is logit(right) - logit(wrong) at the answer position. Scaling all logits scales it. A shift added to
every logit would cancel in it, so the shift acts on the difference of the two answers' logits: it raises the
answer with the lower token id, and so the margins of prompts where that is right (side +1), and lowers the others
(side -1). With the same two answers in every pair it is a bias between the two prompts' answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

_Doubles = npt.NDArray[np.float64]

NEWTON_STEPS = 16
HALVINGS = 40


class Calibration(NamedTuple):
    """Logits are multiplied by `scale` (not negative) and the answer of lower token id is raised by `shift` nats."""

    scale: float = 1.0
    shift: float = 0.0


IDENTITY = Calibration()


def task_loss(margins: Tensor, sides: Tensor, calibration: Calibration = IDENTITY) -> Tensor:
    """Mean two-way cross-entropy in nats of margins (N,) with sides (N,) in {+1, -1}; chance is 0.693."""
    return F.softplus(-(calibration.scale * margins + calibration.shift * sides)).mean()


def calibrate(margins: Tensor, sides: Tensor, max_scale: float = math.inf) -> Calibration:
    """The scale (not negative, at most `max_scale`) and shift of least loss for margins and sides (N,), from (1, 0).

    The problem is convex with two unknowns, so the paper's 16 L-BFGS steps are 16 Newton steps here: the same optimum,
    in a millisecond. Where every prompt is right under some fit there is no optimum, and the 16 steps are the limit.
    """
    scale, shift = _fitted(_doubles(margins)[None], _doubles(sides), max_scale)[0]
    return Calibration(float(scale), float(shift))


def calibrated_loss(margins: Tensor, sides: Tensor, max_scale: float = math.inf) -> tuple[float, Calibration]:
    """Loss after fitting, and the fit."""
    fit = calibrate(margins, sides, max_scale)
    return float(task_loss(margins.double(), sides, fit)), fit


def calibrations(margins: Tensor, sides: Tensor, max_scale: float = math.inf) -> Tensor:
    """(M, 2) scales and shifts of margins (M, N), each row fitted by itself, on the CPU in float64."""
    return torch.from_numpy(_fitted(_doubles(margins), _doubles(sides), max_scale))


def softened(fit: Calibration, margins: Tensor, sides: Tensor, loss: float) -> Calibration:
    """A fit, scaled down until the loss of margins (N,) is as high as `loss`; as it is where it is that high already.

    Far below, where every prompt is right, the fitted scale is as large as rounding lets it become, and derivatives
    of the loss say nothing of the margins.
    """
    low, high = 0.0, 1.0
    lead = fit.scale * margins.double() + fit.shift * sides
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if float(F.softplus(-middle * lead).mean()) < loss else (middle, high)
    return Calibration(high * fit.scale, high * fit.shift)


def _doubles(values: Tensor) -> _Doubles:
    return values.detach().cpu().double().numpy()


def _fitted(margins: _Doubles, sides: _Doubles, max_scale: float) -> _Doubles:
    """Scales and shifts (M, 2) for margins (M, N) with sides (N,).

    The loss is convex, so where the free optimum has too large a scale, the best one allowed is the largest: then only
    the shift is left to fit.
    """
    weights = _descended(np.tile([1.0, 0.0], (len(margins), 1)), margins, sides, _newton_steps)
    weights[~(weights[:, 0] > 0)] = 0.0, _log_odds(sides)
    if (large := weights[:, 0] > max_scale).any():
        start = np.stack([np.full(int(large.sum()), max_scale), np.zeros(int(large.sum()))], 1)
        weights[large] = _descended(start, margins[large], sides, _shift_steps)
    return weights


def _descended(
    weights: _Doubles, margins: _Doubles, sides: _Doubles, newton_steps: Callable[..., _Doubles]
) -> _Doubles:
    """Weights (M, 2) after Newton steps, each halved until the loss no longer rises."""
    losses = _logistic(weights, margins, sides)
    for _ in range(NEWTON_STEPS):
        steps, before = newton_steps(weights, margins, sides), losses
        losses = _logistic(weights + steps, margins, sides)
        while (worse := losses > before).any():  # ends: once a step rounds to nothing the losses are equal
            steps[worse] /= 2
            losses[worse] = _logistic(weights[worse] + steps[worse], margins[worse], sides)
        weights = weights + steps
        if np.array_equal(losses, before):
            break
    return weights


def _lead(weights: _Doubles, margins: _Doubles, sides: _Doubles) -> _Doubles:
    return weights[:, :1] * margins + weights[:, 1:] * sides


def _logistic(weights: _Doubles, margins: _Doubles, sides: _Doubles) -> _Doubles:
    losses: _Doubles = np.logaddexp(0, -_lead(weights, margins, sides)).mean(1)
    return losses


def _newton_steps(weights: _Doubles, margins: _Doubles, sides: _Doubles) -> _Doubles:
    """Steps (M, 2) on the mean logistic losses of weights (M, 2)."""
    wrong = np.exp(-np.logaddexp(0, _lead(weights, margins, sides)))
    features = np.stack([margins, np.broadcast_to(sides, margins.shape)], 1)
    gradient = -(features * wrong[:, None]).mean(2)
    curvature = (features * (wrong * (1 - wrong))[:, None]) @ features.transpose(0, 2, 1) / margins.shape[1]
    # margins may be all alike, or all saturated: then the curvature has no inverse
    steps: _Doubles = np.linalg.solve(curvature + 1e-9 * np.eye(2), -gradient[:, :, None])[:, :, 0]
    return steps


def _shift_steps(weights: _Doubles, margins: _Doubles, sides: _Doubles) -> _Doubles:
    """The same with the scale held."""
    wrong = np.exp(-np.logaddexp(0, _lead(weights, margins, sides)))
    steps = np.zeros_like(weights)
    steps[:, 1] = (sides * wrong).mean(1) / ((wrong * (1 - wrong)).mean(1) + 1e-9)
    return steps


def _log_odds(sides: _Doubles) -> float:
    """The best shift at scale 0; finite also where all sides are the same."""
    up = float(np.clip((sides > 0).mean(), 1e-3, 1 - 1e-3))
    return float(np.log(up / (1 - up)))
