"""Searching in random subsets of the rest: draws, margins beside them, bounds, and what is spared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from circuit.ablated.compact import AblatedModel
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.subsets import DRAWN_PAIRS, DRAWN_PROBABILITIES, Subsets, _Check, _Circuit, spared, worst_pairs
from circuit.search.targets import faithful_circuits, node_circuits


def subsets_of(planted: Any, seed: int = 0) -> Subsets:
    return Subsets(Judge(planted.model, planted.means, planted.task.train), seed, 0.15)


def test_a_draw_has_fresh_pairs_each_beside_a_subset_of_its_own(planted: Any) -> None:
    subsets = subsets_of(planted)
    one, two = subsets.first, subsets.draw()
    share = torch.cat([1 - rest.float().mean(1) for rest in one.rest])
    assert len(one.sides) == 2 * DRAWN_PAIRS == len(share)
    for p in DRAWN_PROBABILITIES:
        assert int(((share - p).abs() < 0.07).sum()) > DRAWN_PAIRS // len(DRAWN_PROBABILITIES)
    rest = torch.cat(one.rest)
    assert torch.equal(rest[::2], rest[1::2]), "both prompts of a pair are beside the same"
    assert len(torch.unique(rest[::2], dim=0)) > DRAWN_PAIRS // 2
    assert not torch.equal(rest, torch.cat(two.rest))
    assert torch.equal(rest, torch.cat(subsets_of(planted).first.rest)), "the same from the same seed"
    assert not torch.equal(rest, torch.cat(subsets_of(planted, 1).first.rest))


def test_margins_and_changes_are_those_of_every_prompt_with_its_own_nodes_ablated(planted: Any) -> None:
    subsets = subsets_of(planted)
    judge, draw = subsets.judge, subsets.first
    keep = judge.index.flat(planted.nodes)
    alone = [
        AblatedModel(judge.model, judge.means, judge.index.channels(keep | rest)).margins(batch)
        for batch, rests in zip(draw.batches, draw.rest, strict=True)
        for rest in [rests[4]]
    ]
    found = torch.split(subsets.margins(draw, keep), [len(batch.sides) for batch in draw.batches])
    for margins, whole in zip(alone, found, strict=True):
        torch.testing.assert_close(margins[4], whole[4], rtol=1e-4, atol=1e-4)
    margins, gradient = subsets.changes(draw, keep)
    torch.testing.assert_close(margins, subsets.margins(draw, keep))
    rest = torch.cat(draw.rest)
    assert float(gradient[rest].abs().max()) == 0, "nodes left alone do not go by their gate"
    node = int(judge.index.flat({"final.in": planted.nodes["final.in"]}).nonzero()[0])
    less = subsets.margins(draw, keep.index_fill(0, torch.tensor([node]), False))
    torch.testing.assert_close(margins - gradient[:, node], less, rtol=1e-3, atol=1e-3)  # linear in this one


def test_worst_pairs_and_the_softest_calibration_within_bounds(planted: Any) -> None:
    lead = torch.full((3, 40), 9.0)
    lead[1, :4] = -5.0  # two pairs of twenty, the worst tenth
    lead[2, 8] = -1.0
    of = F.softplus(-lead).view(3, 20, 2).mean(-1)
    torch.testing.assert_close(worst_pairs(lead), of.sort(-1, descending=True).values[:, :2].mean(-1))
    subsets = subsets_of(planted)
    keep = subsets.judge.index.flat(planted.nodes)
    margins, alone = subsets.margins(subsets.first, keep), subsets.judge.margins(keep)
    tight, loose = (subsets.fitted(subsets.first, margins, alone, enough)[1].scale for enough in (0.1, 1.0))
    assert loose < tight
    subsets.start(keep)
    assert subsets.fitted(subsets.first, margins, alone, 0.0)[1].scale <= 1.5 * loose + 1e-6


def test_what_no_subset_needs_goes_and_what_they_need_stays(planted: Any) -> None:
    subsets = subsets_of(planted)
    useful = subsets.judge.index.flat(planted.nodes)
    more = torch.rand(len(useful), generator=torch.Generator().manual_seed(3)) < 0.2
    subsets.start(useful | more)
    assert torch.equal(spared(subsets, useful | more), useful)
    assert subsets.reached(useful)
    lacking = useful.index_fill(0, useful.nonzero()[-1], False)
    assert not subsets.reached(lacking)
    back = subsets.worth(lacking)[~lacking].argmax()
    assert int((~lacking).nonzero()[back]) == int(useful.nonzero()[-1])


def test_what_a_node_is_worth_is_the_rise_of_the_loss_without_it(planted: Any) -> None:
    subsets = subsets_of(planted)
    keep = subsets.judge.index.flat(planted.nodes)
    node = int(
        subsets.judge.index.flat({"final.in": planted.nodes["final.in"]}).nonzero()[0]
    )  # margins are linear in it
    circuit, draw = _Circuit(subsets, keep), subsets_of(planted).draw()
    margins, alone = subsets.margins(draw, keep), subsets.judge.margins(keep)
    _, fit = subsets.fitted(draw, margins, alone)
    without = subsets.margins(draw, keep.index_fill(0, torch.tensor([node]), False))
    rise = (F.softplus(-draw.lead(without, fit)) - F.softplus(-draw.lead(margins, fit))).mean()
    circuit._look()
    assert float(circuit.worth[node]) == pytest.approx(float(rise), rel=1e-3)
    assert circuit.mean == pytest.approx(float(F.softplus(-draw.lead(margins, fit)).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("alone", "mean", "worst", "passed"),
    [
        (0.15, 0.09, 0.7, True),
        (0.16, 0.09, 0.7, False),  # all others ablated: the target
        (0.15, 0.12, 0.7, False),  # 0.08 and a rise of 0.05: more than 0.7 of the target
        (0.15, 0.09, 0.9, False),  # five times the target, and worse than the circuit itself
    ],
)
def test_a_removal_is_checked_by_three_bounds(
    planted: Any, monkeypatch: pytest.MonkeyPatch, alone: float, mean: float, worst: float, passed: bool
) -> None:
    subsets = subsets_of(planted)
    keep = subsets.judge.index.flat(planted.nodes)
    circuit = _Circuit(subsets, keep)
    circuit.loss, circuit.weight = 0.08, 1.0
    of = iter([(0.1, 0.07, 0.8), (alone, mean, worst)])  # of the circuit, then of what is left of it
    monkeypatch.setattr(_Check, "_losses", lambda *_: next(of))
    check = _Check(circuit)
    assert check.passed(keep) == passed
    assert check.rise == (pytest.approx(mean - 0.07) if passed else 0)


def test_what_a_search_holds_circuits_against_is_its_own_not_the_studys(planted: Any) -> None:
    """A study that looks for faithful circuits as well asks for both: curves and baselines are of plain ones all the
    same."""
    judge = Judge(planted.model, planted.means, planted.task.train)
    config = PruneConfig(steps=30)
    for search in (node_circuits, faithful_circuits):
        found = [search(judge, config.against(ablation), [0.15])[0.15].nodes for ablation in ("all", "subsets")]
        assert torch.equal(*found)
    assert node_circuits(judge, config, [0.15])[0.15].calibration is None
    assert faithful_circuits(judge, config, [0.15])[0.15].calibration is not None
