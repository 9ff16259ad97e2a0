"""Scale and shift of the two-answer logits, fitted before a loss is compared with the target (METHOD 6).

A *margin* is logit(right) - logit(wrong) at the answer position. Scaling all logits scales it. A shift added to
every logit would cancel in it, so the shift acts on the difference of the two answers' logits: it raises the
answer with the lower token id, and so the margins of prompts where that is right (side +1), and lowers the others
(side -1). With the same two answers in every pair it is a bias between the two prompts' answers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

STEPS = 16


class Calibration(NamedTuple):
    """Logits are multiplied by `scale` (not negative) and the answer of lower token id is raised by `shift` nats."""

    scale: float = 1.0
    shift: float = 0.0


IDENTITY = Calibration()


def task_loss(margins: Tensor, sides: Tensor, calibration: Calibration = IDENTITY) -> Tensor:
    """Mean two-way cross-entropy in nats of margins (N,) with sides (N,) in {+1, -1}; chance is 0.693."""
    return F.softplus(-(calibration.scale * margins + calibration.shift * sides)).mean()


def calibrate(margins: Tensor, sides: Tensor) -> Calibration:
    """The scale (not negative) and shift of least loss for margins and sides (N,), from (1, 0).

    The problem is convex with two unknowns, so the paper's 16 L-BFGS steps are 16 Newton steps here: the same optimum,
    in a millisecond. Where every prompt is right under some fit there is no optimum, and the 16 steps are the limit.
    """
    features = np.stack([margins.detach().cpu().double().numpy(), sides.cpu().double().numpy()])
    weights = np.array([1.0, 0.0])
    loss = _logistic(weights @ features)
    for _ in range(STEPS):
        step = _newton_step(weights, features)
        while (improved := _logistic((weights + step) @ features)) > loss:
            step = step / 2  # ends: once the step rounds to nothing the losses are equal
        weights, loss = weights + step, improved
    if weights[0] > 0:
        return Calibration(float(weights[0]), float(weights[1]))
    return Calibration(0.0, _log_odds(features[1]))


def calibrated_loss(margins: Tensor, sides: Tensor) -> tuple[float, Calibration]:
    """Loss after fitting, and the fit."""
    fit = calibrate(margins, sides)
    return float(task_loss(margins.double(), sides, fit)), fit


def _logistic(margins: npt.NDArray[np.float64]) -> float:
    return float(np.logaddexp(0, -margins).mean())


def _newton_step(weights: npt.NDArray[np.float64], features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Step (2,) on the mean logistic loss of weights (2,) @ features (2, N)."""
    wrong = np.exp(-np.logaddexp(0, weights @ features))
    gradient = -(features * wrong).mean(1)
    curvature = (features * (wrong * (1 - wrong))) @ features.T / features.shape[1]
    # margins may be all alike, or all saturated: then the curvature has no inverse
    return np.linalg.solve(curvature + 1e-9 * np.eye(2), -gradient)


def _log_odds(sides: npt.NDArray[np.float64]) -> float:
    """The best shift at scale 0; finite also where all sides are the same."""
    up = float(np.clip((sides > 0).mean(), 1e-3, 1 - 1e-3))
    return float(np.log(up / (1 - up)))
