"""Draws are stored when they are made: kills, other libraries and slow or failed trials lose and repeat none."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import optuna
import pytest

from circuit.graph.edges import matrices
from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.storage.store_errors import StorageUnavailable
from sweeps.frontier.pareto import dominated_area
from sweeps.frontier.rows import write_trial_row
from sweeps.search import sampling
from sweeps.search.draws import Assignment, Objectives, StudySearch
from sweeps.search.objectives import PENALTIES, charged_edges, objectives
from sweeps.search.sampling import OptunaSearch
from sweeps.search.suggestions import Suggestions, spans
from sweeps.study.space import TrialConfig, suggest
from sweeps.study.study import Study, read_study

Text = Callable[..., str]
SAMPLERS = ("tpe", "nsga2", "random")


def result_of(assignment: Assignment) -> Objectives:
    """Made-up figures that depend on the configuration, so that samplers have something to learn."""
    training, model = assignment.config.training, assignment.config.model
    return 4 - training.lr * 10 + 8 / model.d_model, 1000 * training.fraction + training.seed


def play(study: Study, rng: random.Random, known: dict[str, Objectives], stop_after: int = 10**9) -> list[str]:
    """Run a search with up to four trials at a time, results arriving in random order; `known` collects them."""
    search, running, drawn = search_of(study, known), dict[str, Assignment](), list[str]()
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


def search_of(study: Study, known: dict[str, Objectives] | None = None) -> StudySearch:
    """The search of a study as a driver that has just started has it."""
    return StudySearch(study, known or {}, (), Suggestions(study))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_draw_is_a_function_of_what_is_stored(study_text: Text, sampler: str) -> None:
    """From the draws before it and the results that it knew, each suggestion is drawn again, whatever came when."""
    study = read_study(study_text({"search.sampler": sampler, "search.trials": 30}), "s")
    results: dict[str, Objectives] = {}
    play(study, random.Random(1), results)
    stored = Suggestions(study).read()
    assert [made.suggestion for made in stored] == list(range(30))
    for made in stored:
        again = OptunaSearch(study.name, study.space, study.search)
        knew = {i for first, last in made.knew or () for i in range(first, last + 1)}
        for before in stored[: made.suggestion]:
            again.add(before.suggestion, before.params or {}, before.notes)
            if before.suggestion in knew:
                again.tell(before.suggestion, results[before.keys[0]])
        assert made.params in [again.draw(made.suggestion, attempt)[0] for attempt in range(3)]
    assert len({made.knew for made in stored}) > 10, "nothing was known, which would prove nothing"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_kills_lose_no_draw_and_repeat_no_trial(study_text: Text, sampler: str) -> None:
    study = read_study(study_text({"search.sampler": sampler}), "s")
    results: dict[str, Objectives] = {}
    drawn: set[str] = set()
    for attempt in range(40):
        before = dict(results)
        again = play(study, random.Random(attempt), results, stop_after=2)
        assert not set(again) & set(before), "a finished trial was run again"
        drawn |= set(again)
    assert drawn == set(results), "a draw was lost"
    assert len(results) == 12


def test_another_optuna_goes_on_with_the_same_draws(study_text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version draws otherwise, here at random: what was drawn before is run, and nothing of it again."""
    study = read_study(study_text({"search.startup": 1, "search.trials": 12}), "s")
    results: dict[str, Objectives] = {}
    begun = play(study, random.Random(0), results, stop_after=5)
    running = set(begun) - set(results)
    assert running
    other = lambda search, seed: optuna.samplers.RandomSampler(seed=seed + 1)  # noqa: E731
    monkeypatch.setattr(sampling, "sampler_of", other)
    more = play(study, random.Random(3), results)
    assert set(more[: len(running)]) == running, "those that ran come first"
    assert set(begun) <= set(results)
    assert len(results) == 12
    assert [made.keys[0] for made in Suggestions(study).read()] == sorted(results)


def test_a_draw_that_another_driver_stored_holds(study_text: Text) -> None:
    study = read_study(study_text(), "s")
    first, late = search_of(study), search_of(study)
    theirs = first.next_assignment()
    assert isinstance(theirs, Assignment)
    stored = Suggestions(study).read()[0]
    other = stored.model_copy(update={"params": {}, "keys": ("x",)})
    assert Suggestions(study).keep(other) == stored
    ours = late.next_assignment()
    assert ours == theirs


def test_a_file_that_a_kill_left_empty_is_drawn_anew(study_text: Text) -> None:
    study = read_study(study_text(), "s")
    storage.write_bytes_atomic(storage.join(study.root, "suggestions", "00000.json"), b"")
    drawn = search_of(study).next_assignment()
    assert isinstance(drawn, Assignment)
    assert Suggestions(study).read()[0].keys == (drawn.key,)
    storage.write_bytes_atomic(storage.join(study.root, "suggestions", "00001.json"), b"{}")
    with pytest.raises(InputError, match=r"00001\.json: damaged"):
        search_of(study)


def test_no_trial_begins_whose_draw_is_not_stored(study_text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    study = read_study(study_text(), "s")
    search = search_of(study)

    def down(*_: Any) -> None:
        raise StorageUnavailable("storage: down")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", down)
        assert search.next_assignment() == "wait"
        assert search.next_assignment() == "wait"
    drawn = search.next_assignment()
    assert isinstance(drawn, Assignment)
    assert drawn.index == 0


def test_a_slow_trial_holds_back_only_its_own_place(study_text: Text) -> None:
    search = search_of(read_study(study_text({"search.in_flight": 2}), "s"))
    slow = search.next_assignment()
    assert isinstance(slow, Assignment)
    for _ in range(11):
        quick = search.next_assignment()
        assert isinstance(quick, Assignment)
        assert search.next_assignment() == ("wait" if quick.index < 11 else "finished"), "two are in flight"
        search.take_result(quick.key, result_of(quick))
    assert search.next_assignment() == "finished"
    search.take_result(slow.key, result_of(slow))
    made = Suggestions(search._study).read()
    assert made[-1].knew == ((1, 10),), "all that was in, and not the slow one"


def test_a_result_after_a_retry_replaces_the_penalty(study_text: Text) -> None:
    """The search goes on as if the trial had come to this at once; what was drawn meanwhile stays."""
    study = read_study(study_text({"search.startup": 1, "search.in_flight": 1, "search.trials": 8}), "s")
    search, results, crashed = search_of(study), dict[str, Objectives](), ""
    for _ in range(4):
        drawn = search.next_assignment()
        assert isinstance(drawn, Assignment)
        crashed = crashed or drawn.key
        results[drawn.key] = PENALTIES if drawn.key == crashed else result_of(drawn)
        search.take_result(drawn.key, results[drawn.key])
    told = [trial.values for trial in search._optuna._study.trials if trial.values]
    assert list(PENALTIES) in told
    del results[crashed]  # as `--retry-failed` has it
    again = search_of(study, results)
    retried = again.next_assignment()
    assert isinstance(retried, Assignment)
    assert retried.key == crashed
    assert again.next_assignment() == "wait"
    again.take_result(crashed, result_of(retried))
    told = [trial.values for trial in again._optuna._study.trials if trial.values]
    assert list(PENALTIES) not in told
    assert list(result_of(retried)) in told
    fifth = again.next_assignment()
    assert isinstance(fifth, Assignment)
    assert fifth.index == 4


def test_studies_of_earlier_versions_go_on_from_their_rows(study_text: Text) -> None:
    """No draws are stored: rows tell them, whatever hole they have, and names of trials stay as they are."""
    study = read_study(study_text({"seeds": [0, 5], "search.trials": 6}), "s")
    drawn: list[Assignment] = []
    search = StudySearch(study, {})
    while len(drawn) < 6:
        one = search.next_assignment()
        assert isinstance(one, Assignment)
        drawn.append(one)
    known = {}
    for one in [*drawn[:2], drawn[4]]:  # both seeds of the first, nothing of the second, a seed of the third
        key = f"{one.key[:6]}-old{one.config.training.seed}"
        row = {"trial": key, "suggestion": one.index, "seed": one.config.training.seed}
        write_trial_row(study.root, row | {"status": "ok", "config": one.config.canonical_json()})
        known[key] = result_of(one)
    again = search_of(study, known)
    first = again.next_assignment()
    assert isinstance(first, Assignment)
    assert (first.key, first.index) == (drawn[5].key, 2), "the seed that is missing"
    second = again.next_assignment()
    assert isinstance(second, Assignment)
    assert second.index == 1, "the hole"
    assert {made.suggestion for made in Suggestions(study).read()} == {0, 1, 2}
    assert not storage.exists(storage.join(study.root, "suggestions", "00000.json")), "rows are enough"


def test_the_span_of_what_was_known() -> None:
    assert spans([0, 1, 2, 5, 7, 8]) == ((0, 2), (5, 5), (7, 8))
    assert spans([]) == ()


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


def test_raising_trials_continues(study_text: Text) -> None:
    known: dict[str, Objectives] = {}
    first = play(read_study(study_text({"search.trials": 5}), "s"), random.Random(0), known)
    more = play(read_study(study_text({"search.trials": 12}), "s"), random.Random(1), known)
    assert not set(first) & set(more)
    assert len(first) + len(more) == 12


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
    assert objectives(row | {"retried": True}, 1000) == objectives(row, 1000)
    for bad in ({"status": "failed"}, {"status": "diverged"}):
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


def made_up(config: TrialConfig) -> Objectives:
    """Loss and edges of a configuration, as trials of a quickstart have them, roughly: each kind with an optimum."""
    rate, fraction, width = config.training.lr, config.training.fraction, config.model.d_model
    if config.kind == "dense":
        return 1.5 + 0.3 * abs(math.log(rate / 0.006)) + 30 / width, 60.0 * width
    loss = 1.5 + 0.3 * abs(math.log(rate / 0.05)) + 30 / width + 0.01 / fraction + abs(config.training.anneal - 0.5)
    return loss, (2e4 * fraction + 2 * width) * math.exp(0.5 * abs(math.log(rate / 0.05)))


def hypervolume(study: Study) -> float:
    """Of all trials of a study that draws one after the other: nats times decades, as the frontier has it."""
    search, points = StudySearch(study, {}), []
    while isinstance(drawn := search.next_assignment(), Assignment):
        values = made_up(drawn.config)
        points.append((values[0], math.log10(values[1])))
        search.take_result(drawn.key, values)
    return dominated_area(points, (4.0, 5.0))


def test_nsga2_is_no_worse_than_chance_where_kinds_have_their_own_parameters(study_text: Text) -> None:
    """Optuna's own is chance there: all but `kind` and what both kinds share is drawn at random."""
    space = {"trial.training.lr": {"loguniform": [0.001, 0.3]}, "trial.model.d_model": {"choice": [64, 96, 128]}}
    space["trial.sparse.training.fraction"] = {"loguniform": [0.03, 0.5]}
    found = {
        sampler: [
            hypervolume(read_study(study_text(space | {"search": {"trials": 60, "sampler": sampler, "seed": i}}), "s"))
            for i in range(20)
        ]
        for sampler in ("nsga2", "random")
    }
    assert fmean(found["nsga2"]) > fmean(found["random"])
    assert sum(a > b for a, b in zip(*found.values(), strict=True)) >= 10
