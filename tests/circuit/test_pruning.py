"""The whole search on a planted task, and its parts on toys."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from toys import whole_score

from circuit.ablated.calibration import Calibration
from circuit.graph.evidence import NO_PROOFS
from circuit.graph.record import Circuit
from circuit.pruning import find_circuit, find_circuits
from circuit.search.branches import Branches
from circuit.search.config import PruneConfig
from circuit.search.discretise import bisect_nodes, fewest
from circuit.search.elimination import _Circuit, eliminate
from circuit.search.evaluation import Judge
from circuit.search.masks import learn_masks
from circuit.search.parts import Parts
from circuit.search.targets import regrown
from circuit.tasks import TaskData


@pytest.fixture(scope="module")
def found(planted: Any) -> Circuit:
    return find_circuit(planted.model, planted.task, planted.means, PruneConfig())


def test_finds_the_planted_nodes_and_no_others(found: Circuit, planted: Any) -> None:
    assert found.status == "ok"
    assert found.nodes == planted.nodes
    edges = {(e.target.site.removeprefix("layers.1."), e.source.channel, e.target.channel) for e in found.edges}
    assert edges == planted.edges
    assert (found.n_nodes, found.n_edges) == (8, 4)


def test_another_seed_finds_the_same(planted: Any) -> None:
    task = TaskData("planted", train=planted.task.heldout, heldout=planted.task.train)
    circuit = find_circuit(planted.model, task, planted.means, PruneConfig(seed=7))
    assert circuit.nodes == planted.nodes


def test_proofs_of_the_planted_circuit(found: Circuit, planted: Any) -> None:
    assert found.loss <= 0.15
    assert found.heldout_loss <= 0.15
    assert found.heldout_accuracy == 1.0
    assert found.unpruned_loss == pytest.approx(whole_score(planted.model, planted.task.heldout).loss, abs=1e-6)
    assert found.proofs.level == "basic"
    assert found.proofs.necessity_calibrated_loss is not None
    assert found.proofs.necessity_calibrated_loss > 0.9 * math.log(2)
    assert found.proofs.subset_worst_loss is not None
    assert found.proofs.subset_worst_loss < 0.3


def test_every_planted_node_is_needed(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    keep = judge.index.flat(planted.nodes)
    assert judge.calibrated(keep)[0] <= 0.15
    for node in keep.nonzero().flatten():
        assert judge.calibrated(keep.index_fill(0, node, False))[0] > 0.15


def test_a_task_the_model_cannot_do_is_unsolved(planted: Any) -> None:
    task = TaskData("nonsense", train=planted.task.train, heldout=planted.task.heldout.shuffled(0))
    circuit = find_circuit(planted.model, task, planted.means, PruneConfig())
    assert circuit.status == "unsolved", "whatever it does on the pairs that circuits are searched on"
    assert circuit.unpruned_loss > 0.15 > circuit.loss
    assert (circuit.nodes, circuit.edges, circuit.n_edges, circuit.proofs) == ({}, (), 0, NO_PROOFS)
    assert Circuit.from_json(circuit.to_json()) == circuit


def test_a_task_done_only_after_calibration_is_unsolved_unless_told_otherwise(planted: Any) -> None:
    model = copy.deepcopy(planted.model)
    answers = torch.unique(planted.task.train.right)
    with torch.no_grad():
        model.unembedding_bias[answers[0]] += 20  # one answer wins on every prompt; a shift puts that right
    strict = find_circuit(model, planted.task, planted.means, PruneConfig())
    assert strict.status == "unsolved"
    assert strict.unpruned_loss > 0.15 > strict.loss
    same_rule = find_circuits(model, planted.task, planted.means, PruneConfig(), (50.0,), ("node",))
    assert [circuit.status for circuit in same_rule] == ["unsolved"], "whatever the target"
    assert find_circuit(model, planted.task, planted.means, PruneConfig(solved_loss=50)).status == "ok"


def test_calibration_is_in_the_open_and_can_be_bounded(planted: Any) -> None:
    free = find_circuit(planted.model, planted.task, planted.means, PruneConfig(steps=40))
    judge = Judge(planted.model, planted.means, planted.task.heldout)
    assert free.uncalibrated_loss == pytest.approx(judge.score(judge.index.flat(free.nodes)).loss)
    bound = free.scale / 2
    config = PruneConfig(steps=40, max_scale=bound)
    found = find_circuits(planted.model, planted.task, planted.means, config, (0.15, 0.4))
    assert [circuit.status for circuit in found[2:]] == ["ok", "ok"]
    for circuit in found:
        assert circuit.scale <= bound
        assert circuit.status != "ok" or circuit.loss <= circuit.target_loss
    assert len(found[2].nodes) > 0


def test_bisection_keeps_the_highest_and_reaches_the_target(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    planted_keep = judge.index.flat(planted.nodes)
    tau = torch.rand(judge.index.total, generator=torch.Generator().manual_seed(0)) * 0.5
    tau[planted_keep] += 0.4
    keep = bisect_nodes(judge, tau, 0.15)
    assert keep is not None
    assert judge.calibrated(keep)[0] <= 0.15
    assert bool((keep & planted_keep).sum() == planted_keep.sum())
    assert float(tau[keep].min()) >= float(tau[~keep].max())
    assert int(keep.sum()) < judge.index.total


def test_bisection_goes_beyond_what_was_learned_where_that_is_too_little(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    tau = torch.where(judge.index.flat(planted.nodes), -0.5, -1.0)
    tau[0] = 1.0  # the only node learned does nothing
    keep = bisect_nodes(judge, tau, 0.15)
    assert keep is not None
    assert torch.equal(keep, tau > -1.0)
    assert bisect_nodes(judge, tau, 1e-30) is None


@pytest.mark.parametrize("lost", [1, 3, 8])
def test_growth_brings_back_the_planted_nodes_that_were_lost_and_few_others(planted: Any, lost: int) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    whole = judge.index.flat(planted.nodes)
    spare = int((~whole).nonzero()[-1])
    keep = whole.index_fill(0, whole.nonzero().flatten()[-lost:], False).index_fill(0, torch.tensor(spare), True)
    larger = regrown(judge, keep, 0.15, judge.everything())
    assert judge.calibrated(larger)[0] <= 0.15
    assert bool((larger | ~whole).all())
    assert bool((larger | ~keep).all()), "what was kept is kept"
    if lost == 1:
        assert int(larger.sum()) == int(whole.sum()) + 1, "one gate is enough, and first order sees which"
    among = whole.index_fill(0, torch.tensor(spare), True)
    assert torch.equal(regrown(judge, keep, 0.15, among), among), "from nothing else"


def test_masks_that_dropped_too_much_are_made_up_for(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    dear = PruneConfig(k_coef=10.0)
    tau = learn_masks(judge.model, judge.data, judge.means, dear, judge.at(0.15))
    assert judge.calibrated(tau > 0)[0] > 0.15
    assert find_circuit(planted.model, planted.task, planted.means, dear).nodes == planted.nodes


def test_elimination_leaves_the_planted_nodes_of_all(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    parts = Parts(judge.model, judge.everything())
    keep = eliminate(judge, parts, parts.everything(), 0.15)
    assert torch.equal(keep[: parts.n_nodes], judge.index.flat(planted.nodes))


def test_elimination_leaves_the_planted_edges_of_all(planted: Any) -> None:
    """Random weights join the planted nodes to others of the layer; node pruning cannot take those between them out."""
    model = copy.deepcopy(planted.model)
    with torch.no_grad():
        model.layers[1].attn.qkv.weight[0, [0, 1]] = 0.01  # the question's query reads the sign and the mark as well
        model.layers[1].attn.qkv.weight[33, [1, 2]] = 0.01
    circuit = find_circuit(model, planted.task, planted.means, PruneConfig(), method="edge")
    edges = {(e.target.site.removeprefix("layers.1."), e.source.channel, e.target.channel) for e in circuit.edges}
    assert edges == planted.edges
    assert circuit.nodes == planted.nodes
    assert find_circuit(model, planted.task, planted.means, PruneConfig()).n_edges == len(edges) + 4


@pytest.mark.parametrize("edges", [False, True])
def test_what_is_left_is_minimal(planted: Any, edges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where estimates say nothing."""
    monkeypatch.setattr("circuit.search.elimination.ROUNDS", 1000)
    monkeypatch.setattr("circuit.search.elimination.AT_ONCE", 1)
    noise, prompts = torch.Generator().manual_seed(0), 2 * planted.task.train.n_pairs
    monkeypatch.setattr(
        Branches, "changes", lambda self, keep, singles: torch.randn(len(singles), prompts, generator=noise)
    )
    judge = Judge(planted.model, planted.means, planted.task.train)
    generator = torch.Generator().manual_seed(2)
    nodes = judge.index.flat(planted.nodes) | (torch.rand(judge.index.total, generator=generator) < 0.2)
    parts = Parts(judge.model, nodes, edges)
    branches = Branches(judge, parts)
    target = branches.calibrated(parts.everything())[0] * 1.5
    keep = eliminate(judge, parts, parts.everything(), target)
    assert branches.calibrated(keep)[0] <= target
    assert int(keep.sum()) < int(parts.everything().sum())
    for part in parts.removable(keep).nonzero().flatten():
        assert branches.calibrated(parts.closed(keep.index_fill(0, part, False)))[0] > target


def test_parts_are_tried_again_after_others_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Part 0 comes first and can go, but only once part 1 is gone; part 2 cannot."""
    assert _tried(monkeypatch, rounds=2) == [False, False, True]


def test_tries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _tried(monkeypatch, rounds=1) == [True, False, True]


def _tried(monkeypatch: pytest.MonkeyPatch, rounds: int) -> Any:
    """Which of three parts are left."""
    monkeypatch.setattr("circuit.search.elimination.AT_ONCE", 1)
    monkeypatch.setattr("circuit.search.elimination.ROUNDS", rounds)

    class Circuit(_Circuit):
        def __init__(self, judge: Any, parts: Any, keep: torch.Tensor, target: float) -> None:
            self.trunk = SimpleNamespace(keep=keep)  # type: ignore[assignment]

        def shed(self) -> None:
            pass

        def estimates(self) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.arange(3), torch.zeros(3, 1)

        def queue_within_budget(self, singles: torch.Tensor, changes: torch.Tensor) -> tuple[torch.Tensor, int]:
            return singles, 0

        def reduced(self, singles: torch.Tensor) -> bool:
            part = int(singles)
            if part == 2 or (part == 0 and bool(self.keep[1])):
                return False
            self.trunk.keep[part] = False  # type: ignore[misc]
            return True

        def checked(self) -> torch.Tensor:
            return self.keep

    monkeypatch.setattr("circuit.search.elimination._Circuit", Circuit)
    judge: Any = SimpleNamespace()
    return eliminate(judge, judge, torch.tensor([True] * 3), 0.5).tolist()


def test_a_circuit_that_reaches_the_target_only_by_rounding_is_not_taken(
    planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    parts = Parts(judge.model, judge.everything())
    smallest = int(eliminate(judge, parts, parts.everything(), 0.15).sum())
    exactly = Branches.calibrated

    def other(self: Branches, keep: torch.Tensor) -> Any:
        loss, calibration = exactly(self, keep)
        return (0.1501 if int(keep.sum()) == smallest else loss), calibration

    monkeypatch.setattr(Branches, "calibrated", other)
    keep = eliminate(judge, parts, parts.everything(), 0.15)
    assert smallest < int(keep.sum()) < int(parts.everything().sum())
    assert judge.calibrated(keep[: parts.n_nodes])[0] <= 0.15


def test_curve_is_monotone_and_every_circuit_reaches_its_target(planted: Any) -> None:
    targets = (0.15, 0.5, 0.05, 0.3, 1e-9)
    config = PruneConfig(steps=40, max_scale=2)  # with a larger one the whole model reaches any target
    found = find_circuits(planted.model, planted.task, planted.means, config, targets)
    assert [(c.target_loss, c.method) for c in found] == [(t, m) for t in targets for m in ("node", "edge")]
    assert [c.status for c in found] == ["ok"] * 8 + ["unreached"] * 2
    for method in ("node", "edge"):
        sizes = {c.target_loss: c.n_edges for c in found if c.method == method and c.status == "ok"}
        assert [sizes[t] for t in sorted(sizes)] == sorted(sizes.values(), reverse=True)
    assert all(c.loss <= c.target_loss for c in found[:8])
    assert all(edge.n_edges <= node.n_edges for node, edge in zip(found[::2], found[1::2], strict=True))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_fewest_is_the_minimum(a: int, b: int, c: int) -> None:
    low, answer, high = sorted((a, b, c))
    assert fewest(lambda n: n >= answer, low, high) == answer


def test_parts_that_change_the_expected_loss_least_go_first() -> None:
    """Of two parts that change nothing much, the one that saves more edges is first; one that the target cannot spare
    by itself, since it ruins half of the prompts, is last however many edges it saves."""
    margins = torch.full((4,), 2.0)
    swing = torch.tensor([3.0, -3.0, 3.0, -3.0])
    changes = torch.stack([swing, torch.full((4,), -0.01), torch.full((4,), -0.01), torch.full((4,), -0.2)])
    loss = float(F.softplus(-margins).mean())
    circuit = object.__new__(_Circuit)
    saved = torch.tensor([1000, 0, 5, 0])
    circuit.parts, circuit.target, circuit.loss = SimpleNamespace(saved=lambda keep: saved), loss + 0.05, loss  # type: ignore[assignment]
    circuit.judge = SimpleNamespace(sides=torch.ones(4))  # type: ignore[assignment]
    circuit.trunk = SimpleNamespace(keep=torch.tensor([True] * 4), margins=margins)  # type: ignore[assignment]
    circuit.calibration = Calibration(1.0, 0.0)
    order, affordable = circuit.queue_within_budget(torch.arange(4), changes)
    assert order.tolist() == [2, 1, 3, 0]
    assert affordable == 3
    circuit.target = loss + 0.7  # now it can be afforded
    assert circuit.queue_within_budget(torch.arange(4), changes)[0].tolist() == [2, 0, 1, 3]
    circuit.trunk.keep[2] = False  # type: ignore[index]
    assert circuit.queue_within_budget(torch.arange(4), changes)[0].tolist() == [0, 1, 3]
