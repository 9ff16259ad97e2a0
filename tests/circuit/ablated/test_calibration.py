"""Scale and shift against slow searches."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from circuit.ablated.calibration import Calibration, calibrate, calibrated_loss, calibrations, softened, task_loss


def noisy(n: int = 200, scale: float = 1.0, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sides = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    margins = torch.randn(n, generator=generator) + 0.7
    return (margins - shift * sides) / scale, sides


def test_loss_is_two_way_cross_entropy_of_scaled_and_shifted_logits() -> None:
    right, wrong = torch.randn(40), torch.randn(40)
    sides = torch.where(torch.rand(40) < 0.5, 1.0, -1.0)
    first, second = torch.where(sides > 0, right, wrong), torch.where(sides > 0, wrong, right)
    logits = 1.7 * torch.stack([first, second], 1) + torch.tensor([0.4, 0.0])
    wanted = F.cross_entropy(logits, (sides < 0).long())
    torch.testing.assert_close(task_loss(right - wrong, sides, Calibration(1.7, 0.4)), wanted)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (30.0, 0.0), (0.02, 0.8), (5.0, -3.0)])
def test_calibration_is_as_good_as_a_grid_and_undoes_scale_and_shift(scale: float, shift: float) -> None:
    margins, sides = noisy(scale=scale, shift=shift)
    loss, fit = calibrated_loss(margins, sides)
    plain, sides = noisy()
    grid = min(
        float(task_loss(plain, sides, Calibration(s, b))) for s in torch.linspace(0, 4, 81) for b in (-0.1, 0, 0.1)
    )
    assert loss <= grid + 1e-6
    assert loss == pytest.approx(calibrated_loss(plain, sides)[0], abs=1e-6)
    assert fit.scale / scale == pytest.approx(calibrate(plain, sides).scale, rel=1e-3)


def test_no_scale_turns_wrong_into_right() -> None:
    margins, sides = noisy()
    loss, fit = calibrated_loss(-margins.abs(), sides)
    assert fit.scale == 0
    assert loss == pytest.approx(math.log(2), abs=1e-6)


def test_extreme_margins_give_finite_fits() -> None:
    sides = torch.tensor([1.0, -1.0, 1.0, -1.0])
    for margins in (torch.zeros(4), torch.full((4,), 1e4), torch.tensor([1e3, -1e3, 1e3, 1e3]), sides):
        loss, fit = calibrated_loss(margins, sides)
        assert all(map(math.isfinite, (loss, *fit)))
        assert 0 <= loss <= math.log(2) + 1e-9


def test_many_fits_at_once_are_those_of_each() -> None:
    margins, sides = noisy()
    every = torch.stack([margins, -margins, 30 * margins, sides, torch.zeros(200), margins.abs(), -margins.abs()])
    alone = [list(calibrate(one, sides)) for one in every]
    assert calibrations(every, sides).tolist() == [pytest.approx(fit, abs=1e-9) for fit in alone]
    assert calibrations(every[:0], sides).tolist() == []


def test_a_fit_is_softened_to_a_loss_and_only_to_a_higher_one() -> None:
    margins, sides = noisy()
    margins = margins.abs() + 0.1  # every prompt is right: the fit has no end
    loss, fit = calibrated_loss(margins, sides)
    assert loss < 1e-3
    soft = softened(fit, margins, sides, 0.15)
    assert float(task_loss(margins.double(), sides, soft)) == pytest.approx(0.15)
    assert soft.scale / fit.scale == pytest.approx(soft.shift / fit.shift)
    loss, fit = calibrated_loss(*noisy())
    assert softened(fit, *noisy(), loss / 2) == pytest.approx(fit)


@pytest.mark.parametrize("max_scale", [0.3, 1.0, 4.0])
def test_a_bounded_scale_gives_the_best_fit_there_is_within_it(max_scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    margins, sides = torch.randn(60, generator=generator) + 0.7, torch.randn(60, generator=generator).sign()
    loss, fit = calibrated_loss(margins, sides, max_scale)
    assert 0 <= fit.scale <= max_scale
    grid = [
        float(task_loss(margins.double(), sides, Calibration(scale, shift)))
        for scale in torch.linspace(0, max_scale, 61).tolist()
        for shift in torch.linspace(-2, 2, 161).tolist()
    ]
    assert loss <= min(grid) + 1e-6
    assert loss == pytest.approx(min(grid), abs=1e-3)
    both = calibrations(torch.stack([margins, margins.abs()]), sides, max_scale)
    assert both[0].tolist() == pytest.approx(list(fit))
    assert calibrated_loss(margins.abs(), sides, max_scale)[1].scale == pytest.approx(max_scale)
