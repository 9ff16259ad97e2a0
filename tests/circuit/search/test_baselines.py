"""Rankings that learned masks are compared with."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from circuit.ablated.nodes import NodeIndex
from circuit.search.attribution import attributions, margin_attributions
from circuit.search.baselines import (
    BASELINES,
    PATH_STEPS,
    KeptParts,
    cmd,
    cpr,
    faithfulness,
    of_nodes,
    ordered,
    smallest_reaching,
)
from circuit.search.evaluation import Judge
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


def margins_with(case: Case, gates: dict[str, Tensor]) -> Tensor:
    """(P,) through the model itself, one prompt at a time, in the order of the judge's batches."""
    (judge, data), means, found = case, case.judge.means, []
    for row in data.length.argsort(stable=True).tolist():
        n = int(data.length[row])
        with torch.no_grad():
            logits = judge.model(
                data.tokens[row : row + 1, :n], lambda site, x: means[site] + gates[site] * (x - means[site])
            )[0, -1]
        found.append(logits[data.right[row]] - logits[data.wrong[row]])
    return torch.stack(found)


def test_margin_attributions_are_finite_differences_prompt_by_prompt(case: Case) -> None:
    judge = case.judge
    got = margin_attributions(judge, 0.4 * judge.everything().float())
    assert got.shape == (judge.index.total, 4)
    for site in judge.means:
        for channel in range(0, 8, 3):
            ends = []
            for change in (-0.03, 0.03):
                gates = {name: torch.full_like(mean, 0.4) for name, mean in judge.means.items()}
                gates[site][channel] += change
                ends.append(margins_with(case, gates))
            node = judge.index.first[site] + channel
            torch.testing.assert_close(got[node], (ends[1] - ends[0]) / 0.06, rtol=0.03, atol=1e-4)


def test_integrated_gradients_add_up_to_what_ablating_everything_costs(case: Case) -> None:
    judge = case.judge
    steps = [(step + 0.5) / (8 * PATH_STEPS) for step in range(8 * PATH_STEPS)]
    paths = [margin_attributions(judge, openness * judge.everything().float()) for openness in steps]
    path = torch.stack(paths).mean(0)
    whole, nothing = (judge.margins(keep) for keep in (judge.everything(), ~judge.everything()))
    torch.testing.assert_close(path.sum(0), whole - nothing, rtol=0.02, atol=1e-3)
    torch.testing.assert_close(ordered(judge, "integrated").worth, path.abs().mean(1), atol=5e-3, rtol=0.1)


def test_what_helps_some_prompts_and_harms_others_does_not_cancel(planted: Any) -> None:
    """The planted sign raises one answer or the other: absolute before averaging it is worth most of its layer's."""
    judge = Judge(planted.model, planted.means, planted.task.train)
    per_prompt = margin_attributions(judge, judge.everything().float())
    worth = ordered(judge, "attribution").worth
    torch.testing.assert_close(worth, per_prompt.abs().mean(1))
    assert float(worth.sum()) > float(per_prompt.mean(1).abs().sum())


def test_edge_attribution_is_what_removing_an_edge_changes(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    order = ordered(judge, "edge attribution")
    best = order.worth.argsort(descending=True)[:3].tolist()
    ends = {(int(order.parts.source[e]), int(order.parts.target[e])) for e in best}
    first = judge.index.first
    read = (first["layers.1.attn.v"] + 1, first["layers.1.attn.out"] + 5)
    assert read in ends, "what carries the answer is worth most"
    kept = smallest_reaching(order, 0.15)
    assert kept is not None
    assert kept.n_edges >= 4
    assert judge.calibrated(kept.nodes, kept.edges)[0] <= 0.15


def test_orders_go_through_the_same_bisection_and_count(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    perfect = of_nodes(judge, judge.index.flat(planted.nodes).float())
    found = smallest_reaching(perfect, 0.15)
    assert found is not None
    assert found.n_edges == 4
    assert smallest_reaching(perfect, 1e-12) is None
    for baseline in BASELINES:
        kept = smallest_reaching(ordered(judge, baseline), 0.15)
        assert kept is not None
        assert kept.n_edges >= 4
    assert torch.equal(ordered(judge, "random", 3).worth, ordered(judge, "random", 3).worth)
    assert not torch.equal(ordered(judge, "random", 3).worth, ordered(judge, "random", 4).worth)


def test_mibs_areas_by_hand() -> None:
    curve = {0.5: 0.5, 1.0: 1.0, 0.0: 2.0}
    assert cpr(curve) == pytest.approx(0.5 * 1.25 + 0.5 * 0.75)
    assert cmd(curve) == pytest.approx(0.5 * 0.75 + 0.5 * 0.25)


def test_a_perfect_order_is_faithful_from_its_own_size_on(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)

    def margin(kept: KeptParts) -> float:
        return float(judge.margins(kept.nodes, kept.edges).mean())

    perfect = of_nodes(judge, judge.index.flat(planted.nodes).float())
    total = len(perfect.parts.source)
    curve = faithfulness(perfect, margin, (0.0, 4 / total, 0.5, 1.0))
    assert curve[1.0] == pytest.approx(1)
    assert curve[0.0] == pytest.approx(0, abs=0.3)
    assert curve[4 / total] == pytest.approx(1, abs=0.3)
    worst = faithfulness(ordered(judge, "random"), margin, (0.0, 4 / total, 0.5, 1.0))
    assert cmd(curve) < cmd(worst)
