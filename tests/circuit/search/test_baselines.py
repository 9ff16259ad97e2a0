"""Rankings that learned masks are compared with."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from circuit.search.attribution import attributions
from circuit.search.baselines import BASELINES, STEPS, scores, sizes
from circuit.search.evaluation import Judge
from circuit.search.masks import NodeIndex
from circuit.tasks import PairBatch
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer


class Case(NamedTuple):
    judge: Judge
    data: PairBatch


@pytest.fixture
def case() -> Case:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=12, context=12, n_layer=1, d_model=8, d_head=4, activation_fraction=1)
    model = SparseTransformer(config)
    answers = torch.tensor([1, 2, 3, 4])
    data = PairBatch(torch.randint(0, 12, (4, 8)), torch.tensor([8, 5, 6, 3]), answers, answers + 5)
    means = {name: 0.3 * torch.randn(width) for name, width in NodeIndex(model).widths.items()}
    return Case(Judge(model, means, data), data)


def loss_with(case: Case, gates: dict[str, Tensor]) -> float:
    """Through the model itself, one prompt at a time."""
    (judge, data), means, total = case, case.judge.means, 0.0
    for row, n in enumerate(data.length.tolist()):
        with torch.no_grad():
            logits = judge.model(
                data.tokens[row : row + 1, :n], lambda site, x: means[site] + gates[site] * (x - means[site])
            )[0, -1]
        total += math.log1p(math.exp(float(logits[data.wrong[row]] - logits[data.right[row]])))
    return total / len(data.length)


@pytest.mark.parametrize("openness", [1.0, 0.4])
def test_attributions_are_finite_differences_of_the_models_own_loss(case: Case, openness: float) -> None:
    means = case.judge.means
    got = case.judge.index.split(attributions(case.judge, openness * case.judge.everything().float()))
    assert max(float(part.abs().max()) for part in got.values()) > 1e-2
    for site in means:
        for channel in range(0, 8, 3):
            ends = []
            for change in (-0.03, 0.03):
                gates = {name: torch.full_like(mean, openness) for name, mean in means.items()}
                gates[site][channel] += change
                ends.append(loss_with(case, gates))
            assert float(got[site][channel]) == pytest.approx((ends[0] - ends[1]) / 0.06, rel=0.02, abs=1e-5)


def test_integrated_gradients_add_up_to_what_ablating_everything_costs(case: Case) -> None:
    judge = case.judge
    steps = [(step + 0.5) / (8 * STEPS) for step in range(8 * STEPS)]
    path = torch.stack([attributions(judge, openness * judge.everything().float()) for openness in steps]).mean(0)
    whole, nothing = (judge.score(keep).loss for keep in (judge.everything(), ~judge.everything()))
    assert float(path.sum()) == pytest.approx(nothing - whole, abs=0.02 * abs(nothing - whole) + 1e-4)
    torch.testing.assert_close(scores(judge, "integrated"), path.abs(), atol=2e-3, rtol=0.1)


def test_rankings_go_through_the_same_bisection_and_count(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    perfect = judge.index.flat(planted.nodes).float()
    assert sizes(judge, perfect, (0.15, 1e-12)) == {0.15: 4, 1e-12: None}
    for baseline in BASELINES:
        size = sizes(judge, scores(judge, baseline), (0.15,))[0.15]
        assert size is not None
        assert size >= 4
    assert torch.equal(scores(judge, "random", 3), scores(judge, "random", 3))
    assert not torch.equal(scores(judge, "random", 3), scores(judge, "random", 4))
