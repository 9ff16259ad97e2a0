"""The budget of a search: seeds and tuning trials, for real answers and shuffled ones alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from circuit.ablated.nodes import NodeIndex
from circuit.pruning import find_circuit
from circuit.search import targets
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.exploration import FACTORS, explore
from circuit.search.masks import learn_masks
from circuit.search.targets import Solution, combine, edge_circuits, smallest
from circuit.search.watch import Stopped


def test_the_budget_is_seeds_then_points_around_the_settings() -> None:
    seen: list[PruneConfig] = []

    def far_from_seven(config: PruneConfig) -> float:
        seen.append(config)
        return abs(config.k_coef / 7e-3 - 1)

    config = PruneConfig(seed=3, restarts=2, tuning_trials=12)
    explore(config, far_from_seven)
    assert [c.seed for c in seen[:3]] == [3, 4, 3]
    assert seen[0] == config
    assert len(seen) == 14
    for name, factor in FACTORS.items():
        values = [getattr(c, name) / getattr(config, name) for c in seen[2:]]
        assert all(0.999 / factor <= value <= 1.001 * factor for value in values)
        assert len(set(values)) > 6
    first = list(seen)
    seen.clear()
    explore(config, far_from_seven)
    assert seen == first


def test_settings_outside_the_range_of_tuning_are_searched_with_all_the_same() -> None:
    tried: list[PruneConfig] = []

    def search(config: PruneConfig) -> float:
        tried.append(config)
        return 1.0

    config = PruneConfig(weight_decay=0, k_coef=1e-8, init_bias=1, seed=2**64 - 1, restarts=2, tuning_trials=2)
    explore(config, search)
    assert tried[0] == config
    assert [start.seed for start in tried[:2]] == [2**64 - 1, 0]
    assert len(tried) == 4


def test_a_stop_while_tuning_is_passed_on_and_says_nothing_itself(capfd: pytest.CaptureFixture[str]) -> None:
    def search(config: PruneConfig) -> float:
        if config.lr != PruneConfig().lr:
            raise Stopped
        return 1.0

    with pytest.raises(Stopped):
        explore(PruneConfig(tuning_trials=2), search)
    assert capfd.readouterr().err == ""


def test_the_smallest_of_all_searches_is_kept(planted: Any, monkeypatch: Any) -> None:
    learned: list[int] = []

    def counted(*args: Any) -> Any:
        learned.append(1)
        return learn_masks(*args)

    monkeypatch.setattr("circuit.search.targets.learn_masks", counted)
    sizes: list[list[tuple[int, int]]] = []

    def watched(candidates: list[targets.Solution]) -> targets.Solution:
        sizes.append([solution.size for solution in candidates])
        return smallest(candidates)

    monkeypatch.setattr(targets, "smallest", watched)
    config = PruneConfig(steps=10, eliminate=False, restarts=2, tuning_trials=1)
    circuit = find_circuit(planted.model, planted.task, planted.means, config)
    assert len(learned) == 3
    assert (circuit.n_edges, circuit.n_nodes) == min(sizes[0] + sizes[1])


def test_two_circuits_together_may_hold_a_smaller_one(monkeypatch: Any) -> None:
    """Circuits are sets of eight nodes, as large as they have nodes; what is left of two together is given."""
    left = {"11110000": "10010000", "10011100": "11110001"}
    tried: list[str] = []

    def loss(nodes: torch.Tensor) -> tuple[float, None]:
        return (0.2 if nodes[7] and not nodes[6] else 0.1), None

    def circuit(nodes: str) -> Solution:
        keep = torch.tensor([node == "1" for node in nodes])
        return Solution(SimpleNamespace(n_nodes=8), keep)  # type: ignore[arg-type]

    def minimise(judge: Any, nodes: torch.Tensor, config: PruneConfig, target: float) -> Solution:
        tried.append("".join("01"[int(node)] for node in nodes))
        return circuit(left[tried[-1]])

    judge: Any = SimpleNamespace(calibrated=loss)
    monkeypatch.setattr(targets, "minimise", minimise)
    found = [circuit(nodes) for nodes in ("11100000", "01110000", "00011100", "00011001")]
    best = combine(judge, found, PruneConfig(), 0.15)
    assert tried == ["11110000", "10011100"]  # the last together with the best misses the target
    assert best.keep.tolist() == circuit("10010000").keep.tolist()
    assert combine(judge, found, PruneConfig(eliminate=False), 0.15).size == (0, 3)
    assert len(tried) == 2


def test_tied_masks_are_the_same_for_query_and_key(planted: Any) -> None:
    judge = Judge(planted.model, planted.means, planted.task.train)
    for tie in (True, False):
        config = PruneConfig(steps=12, tie_qk=tie, retire=1)
        tau = learn_masks(planted.model, planted.task.train, planted.means, config, judge.at(0.15))
        parts = NodeIndex(planted.model).split(tau)
        assert torch.equal(parts["layers.1.attn.q"], parts["layers.1.attn.k"]) == tie


def test_edges_are_searched_afresh_only_where_that_may_pay(monkeypatch: Any) -> None:
    """By target: edges of the node circuit, of the search inside the last circuit, and of the one from all edges."""
    planted = {
        0.01: (100, None, 50),  # the first
        0.02: (95, 49, 0),  # hardly another node circuit
        0.05: (80, 48, 40),  # clearly smaller, and it pays
        0.1: (60, 38, 39),  # clearly smaller, and it does not pay
        0.15: (59, 37, 36),  # hardly smaller, but the target asked for: it pays
        0.2: (40, 34, 34),  # so it is tried again, and does not pay
        0.5: (10, 29, 0),
    }
    afresh: list[float] = []

    def circuit(edges: int, **said: Any) -> Solution:
        return Solution(SimpleNamespace(n_nodes=0, **said), torch.ones(edges, dtype=torch.bool))  # type: ignore[arg-type]

    def shrink(judge: Any, start: Any, config: PruneConfig, target: float) -> Solution:
        if hasattr(start.parts, "everything"):
            afresh.append(target)
        return circuit(planted[target][2 if target in afresh[-1:] else 1] or 0)

    judge: Any = SimpleNamespace(model=None)
    all_edges = circuit(1, everything=lambda: torch.ones(1, dtype=torch.bool)).parts
    monkeypatch.setattr(targets, "Parts", lambda model, nodes, edges: all_edges)
    monkeypatch.setattr(targets, "_shrink", shrink)
    nodes = {target: circuit(edges) for target, (edges, _, _) in planted.items()}
    sizes = {target: cut.size[0] for target, cut in edge_circuits(judge, nodes, PruneConfig(target_loss=0.15)).items()}
    assert afresh == [0.01, 0.05, 0.1, 0.15, 0.2]
    assert sizes == {0.01: 50, 0.02: 49, 0.05: 40, 0.1: 38, 0.15: 36, 0.2: 34, 0.5: 29}
