"""The whole search on a planted task, and its parts on toys."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuit.config import PruneConfig
from circuit.discretise import bisect_nodes, eliminate, fewest
from circuit.evaluation import Judge, task_scores
from circuit.graph import Circuit
from circuit.pruning import find_circuit
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
    assert found.unpruned_loss == pytest.approx(task_scores(planted.model, planted.task.train).loss, abs=1e-6)
    assert found.necessity_loss is not None
    assert found.necessity_loss > 0.9 * math.log(2)


def test_no_circuit_for_shuffled_answers(found: Circuit) -> None:
    assert found.control_loss is not None
    assert found.control_loss > 0.4
    assert found.control_edges is None


def test_every_planted_node_is_needed(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    keep = judge.index.flat(planted.nodes)
    assert judge.calibrated(keep)[0] <= 0.15
    for node in keep.nonzero().flatten():
        assert judge.calibrated(keep.index_fill(0, node, False))[0] > 0.15


def test_a_task_the_model_cannot_do_is_unsolved(planted: Any) -> None:
    task = TaskData("nonsense", train=planted.task.train.shuffled(0), heldout=planted.task.heldout)
    circuit = find_circuit(planted.model, task, planted.means, PruneConfig())
    assert circuit.status == "unsolved"
    assert circuit.loss > 0.15
    assert (circuit.nodes, circuit.edges, circuit.n_edges, circuit.necessity_loss) == ({}, (), 0, None)
    assert Circuit.from_json(circuit.to_json()) == circuit


def test_a_task_done_only_after_calibration_is_unsolved_unless_told_otherwise(planted: Any) -> None:
    model = copy.deepcopy(planted.model)
    answers = torch.unique(planted.task.train.right)
    with torch.no_grad():
        model.unembedding_bias[answers[0]] += 20  # one answer wins on every prompt; a shift puts that right
    strict = find_circuit(model, planted.task, planted.means, PruneConfig())
    assert strict.status == "unsolved"
    assert strict.unpruned_loss > 0.15 > strict.loss
    assert find_circuit(model, planted.task, planted.means, PruneConfig(solved_loss=50)).status == "ok"


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


def test_elimination_leaves_the_planted_nodes_of_all(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    keep = eliminate(judge, judge.everything(), 0.15)
    assert torch.equal(keep, judge.index.flat(planted.nodes))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_fewest_is_the_minimum(a: int, b: int, c: int) -> None:
    low, answer, high = sorted((a, b, c))
    assert fewest(lambda n: n >= answer, low, high) == answer
