"""The search is a function of the study and its rows: neither order of results nor kills change what is drawn."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from functools import partial

import pytest

from circuit.graph.edges import matrices
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer
from sweeps.search.draws import Assignment, Objectives, StudySearch
from sweeps.search.objectives import PENALTIES, charged_edges, objectives
from sweeps.study.space import suggest
from sweeps.study.study import Study, read_study

Text = Callable[..., str]
SAMPLERS = ("tpe", "nsga2", "random")


def result_of(assignment: Assignment) -> Objectives:
    """Made-up figures that depend on the configuration, so that samplers have something to learn."""
    training, model = assignment.config.training, assignment.config.model
    return 4 - training.lr * 10 + 8 / model.d_model, 1000 * training.fraction + training.seed


def play(study: Study, rng: random.Random, known: dict[str, Objectives], stop_after: int = 10**9) -> list[str]:
    """Run a search with up to four trials at a time, results arriving in random order; `known` collects them."""
    search, running, drawn = StudySearch(study, known), dict[str, Assignment](), list[str]()
    while True:
        drawing = search.next_assignment() if len(running) < 4 else "wait"
        if isinstance(drawing, Assignment):
            running[drawing.key] = drawing
            drawn.append(drawing.key)
            if rng.random() < 0.5:
                continue
        if not running:
            assert drawing == "finished"
            return drawn
        if stop_after == 0:
            return drawn
        stop_after -= 1
        key = rng.choice(sorted(running))
        known[key] = result_of(running.pop(key))
        search.take_result(key, known[key])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_order_of_results_changes_nothing(study_text: Text, sampler: str) -> None:
    study = read_study(study_text({"search.sampler": sampler}), "s")
    plays = [play(study, random.Random(seed), {}) for seed in range(4)]
    assert len(set(plays[0])) == 12
    assert all(sorted(other) == sorted(plays[0]) for other in plays)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_kills_change_nothing(study_text: Text, sampler: str) -> None:
    study = read_study(study_text({"search.sampler": sampler}), "s")
    undisturbed: dict[str, Objectives] = {}
    play(study, random.Random(0), undisturbed)
    killed: dict[str, Objectives] = {}
    for attempt in range(40):
        before = dict(killed)
        drawn = play(study, random.Random(attempt), killed, stop_after=2)
        assert not set(drawn) & set(before), "a finished trial was run again"
    assert killed == undisturbed


def test_results_matter(study_text: Text) -> None:
    """Were results ignored, the two tests above would prove nothing."""
    study = read_study(study_text(), "s")
    usual: dict[str, Objectives] = {}
    play(study, random.Random(0), usual)
    search, keys = StudySearch(study, {}), []
    while isinstance(drawing := search.next_assignment(), Assignment):
        keys.append(drawing.key)
        loss, edges = result_of(drawing)
        search.take_result(drawing.key, (-loss, -edges))
    assert sorted(keys)[: study.search.startup] == sorted(usual)[: study.search.startup]
    assert set(keys) != set(usual)


def test_no_more_are_handed_out_than_in_flight(study_text: Text) -> None:
    search = StudySearch(read_study(study_text({"search.in_flight": 2}), "s"), {})
    first, second = search.next_assignment(), search.next_assignment()
    assert isinstance(first, Assignment)
    assert isinstance(second, Assignment)
    assert search.next_assignment() == "wait"
    search.take_result(second.key, (2.0, 10.0))
    assert search.next_assignment() == "wait", "the third may know the first, which has not ended"
    search.take_result(first.key, (2.0, 10.0))
    assert isinstance(search.next_assignment(), Assignment)


def test_raising_trials_continues(study_text: Text) -> None:
    known: dict[str, Objectives] = {}
    first = play(read_study(study_text({"search.trials": 5}), "s"), random.Random(0), known)
    more = play(read_study(study_text({"search.trials": 12}), "s"), random.Random(1), known)
    assert not set(first) & set(more)
    assert len(first) + len(more) == 12
    straight: dict[str, Objectives] = {}
    play(read_study(study_text({"search.trials": 12}), "s"), random.Random(2), straight)
    assert straight == known


def test_try_first_and_seeds(study_text: Text) -> None:
    first = [{"kind": "dense", "model": {"d_model": 64}, "training": {"lr": 0.05}}, {"kind": "sparse"}]
    study = read_study(study_text({"search.try_first": first, "seeds": [0, 5], "search.trials": 3}), "s")
    search = StudySearch(study, {})
    drawn = [drawing for _ in range(4) if isinstance(drawing := search.next_assignment(), Assignment)]
    assert [drawing.index for drawing in drawn] == [0, 0, 1, 1]
    trials = [drawing.config for drawing in drawn]
    assert [trial.kind for trial in trials] == ["dense", "dense", "sparse", "sparse"]
    assert [trial.training.seed for trial in trials] == [0, 5, 0, 5]
    assert (trials[0].model.d_model, trials[0].training.lr) == (64, 0.05)


def test_a_small_space_is_exhausted_once(study_text: Text) -> None:
    text = study_text({"trial.kind": "dense", "trial.training.lr": 0.01, "search.trials": 9})
    drawn = play(read_study(text, "s"), random.Random(0), {})
    assert len(drawn) == 2, "there are two widths"


def test_a_small_best_part_does_not_end_the_search(study_text: Text) -> None:
    """Dense trials are two, and better than all others; the search goes on to sparse ones, of which there is no end."""
    text = study_text({"search.trials": 60, "trial.training.lr": 0.01})
    search, kinds = StudySearch(read_study(text, "s"), {}), list[str]()
    while isinstance(drawing := search.next_assignment(), Assignment):
        kinds.append(drawing.config.kind)
        search.take_result(drawing.key, (1.0, 1.0) if kinds[-1] == "dense" else (9.0, 9.0))
    assert (len(kinds), kinds.count("dense")) == (60, 2)


def test_crashes_are_told_as_penalties(study_text: Text) -> None:
    study = read_study(study_text({"search.trials": 1}), "s")
    search = StudySearch(study, {})
    drawing = search.next_assignment()
    assert isinstance(drawing, Assignment)
    search.take_result(drawing.key, None)
    assert search._known[drawing.key] == PENALTIES
    assert search.next_assignment() == "finished"


def test_objectives_of_rows() -> None:
    row = {"status": "ok", "retried": False, "eligible": True, "val_loss": 2.0, "circuit_edges": 30.0}
    row |= {"tasks_tried": 4, "tasks_counted": 4, "tasks_without_edges": 0}
    assert objectives(row, 1000) == (2.0, pytest.approx(30.0))
    for bad in ({"status": "failed"}, {"status": "diverged"}, {"retried": True}):
        assert objectives(row | bad, 1000) == PENALTIES


def test_what_is_not_solved_is_charged_to_the_sampler() -> None:
    row = {"tasks_tried": 6, "tasks_counted": 2, "tasks_without_edges": 1, "circuit_edges": 10.0}
    assert charged_edges(row, 1000) == pytest.approx((10.0**2 * 1000.0**3) ** (1 / 5))
    more = row | {"tasks_counted": 3, "circuit_edges": 40.0}  # a hard task more, whose circuit is large
    assert charged_edges(more, 1000) < charged_edges(row, 1000)
    nothing = row | {"tasks_counted": 0, "circuit_edges": None}
    assert charged_edges(nothing, 1000) == pytest.approx(1000)
    assert charged_edges(row | {"tasks_tried": 3, "tasks_counted": 0, "tasks_without_edges": 3}, 1000) == 1


def test_the_charge_is_larger_than_any_circuit_of_the_space(study_text: Text) -> None:
    study = read_study(study_text({"trial.model.d_model": {"choice": [32, 64]}, "trial.model.n_layer": 2}), "s")
    model = SparseTransformer(ModelConfig(d_model=64, n_layer=2, d_head=16))
    assert study.unsolved_edges == sum(weight.numel() for *_, weight in matrices(model))


def test_space_function_can_be_pickled(study_text: Text) -> None:
    study = read_study(study_text(), "s")
    assert pickle.loads(pickle.dumps(partial(suggest, study.space))).args[0] == study.space
