"""The search is a function of the study and its rows: neither order of results nor kills change what is drawn."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sweeps.search.draws import Objectives, StudySearch
from sweeps.search.objectives import METRICS, PENALTIES, objectives
from sweeps.study.space import suggest
from sweeps.study.study import Study, read_study

Text = Callable[..., str]
SAMPLERS = ("tpe", "nsga2", "random")


def result_of(config: dict[str, Any]) -> Objectives:
    """Made-up figures that depend on the configuration, so that samplers have something to learn."""
    training, model = config["trial"]["training"], config["trial"]["model"]
    return 4 - training["lr"] * 10 + 8 / model["d_model"], 1000 * training["fraction"] + training["seed"]


def finish(search: StudySearch, trial_id: str, values: Objectives) -> None:
    search.on_trial_complete(trial_id, dict(zip(METRICS, values, strict=True)))


def play(study: Study, rng: random.Random, known: dict[str, Objectives], stop_after: int = 10**9) -> list[str]:
    """Run a search with up to four trials at a time, results arriving in random order; `known` collects them."""
    search, running, drawn = StudySearch(study, known), dict[str, dict[str, Any]](), list[str]()
    while True:
        config = search.suggest(f"tune-{len(drawn)}") if len(running) < 4 else None
        if isinstance(config, dict):
            running[f"tune-{len(drawn)}"] = config
            drawn.append(config["key"])
            if rng.random() < 0.5:
                continue
        if not running:
            assert config == StudySearch.FINISHED
            return drawn
        if stop_after == 0:
            return drawn
        stop_after -= 1
        trial_id = rng.choice(sorted(running))
        config = running.pop(trial_id)
        known[config["key"]] = result_of(config)
        finish(search, trial_id, known[config["key"]])


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
    while isinstance(config := search.suggest(str(len(keys))), dict):
        keys.append(config["key"])
        loss, edges = result_of(config)
        finish(search, str(len(keys) - 1), (-loss, -edges))
    assert sorted(keys)[: study.search.startup] == sorted(usual)[: study.search.startup]
    assert set(keys) != set(usual)


def test_no_more_are_handed_out_than_in_flight(study_text: Text) -> None:
    search = StudySearch(read_study(study_text({"search.in_flight": 2}), "s"), {})
    assert isinstance(search.suggest("a"), dict)
    second = search.suggest("b")
    assert isinstance(second, dict)
    assert search.suggest("c") is None
    finish(search, "b", (2.0, 10.0))
    assert search.suggest("c") is None, "the third may know the first, which has not ended"
    finish(search, "a", (2.0, 10.0))
    assert isinstance(search.suggest("c"), dict)


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
    configs = [search.suggest(str(i)) for i in range(4)]
    assert [c["index"] for c in configs if isinstance(c, dict)] == [0, 0, 1, 1]
    trials = [c["trial"] for c in configs if isinstance(c, dict)]
    assert [t["kind"] for t in trials] == ["dense", "dense", "sparse", "sparse"]
    assert [t["training"]["seed"] for t in trials] == [0, 5, 0, 5]
    assert (trials[0]["model"]["d_model"], trials[0]["training"]["lr"]) == (64, 0.05)


def test_a_small_space_is_exhausted_once(study_text: Text) -> None:
    text = study_text({"trial.kind": "dense", "trial.training.lr": 0.01, "search.trials": 9})
    drawn = play(read_study(text, "s"), random.Random(0), {})
    assert len(drawn) == 2, "there are two widths"


def test_a_small_best_part_does_not_end_the_search(study_text: Text) -> None:
    """Dense trials are two, and better than all others; the search goes on to sparse ones, of which there is no end."""
    text = study_text({"search.trials": 60, "trial.training.lr": 0.01})
    search, kinds = StudySearch(read_study(text, "s"), {}), list[str]()
    while isinstance(config := search.suggest("x"), dict):
        kinds.append(config["trial"]["kind"])
        finish(search, "x", (1.0, 1.0) if kinds[-1] == "dense" else (9.0, 9.0))
    assert (len(kinds), kinds.count("dense")) == (60, 2)


def test_crashes_are_told_as_penalties(study_text: Text) -> None:
    study = read_study(study_text({"search.trials": 1}), "s")
    search = StudySearch(study, {})
    config = search.suggest("a")
    assert isinstance(config, dict)
    search.on_trial_complete("a", error=True)
    assert search._known[config["key"]] == PENALTIES
    assert search.suggest("b") == StudySearch.FINISHED


def test_objectives_of_rows() -> None:
    row = {"status": "ok", "retried": False, "eligible": True, "val_loss": 2.0, "circuit_edges": 30.0}
    assert objectives(row) == (2.0, 30.0)
    assert objectives(row | {"eligible": False, "circuit_edges": 3.0}) == (2.0, PENALTIES[1])
    for bad in ({"status": "failed"}, {"status": "diverged"}, {"retried": True}):
        assert objectives(row | bad) == PENALTIES


def test_space_function_can_be_pickled(study_text: Text) -> None:
    study = read_study(study_text(), "s")
    assert pickle.loads(pickle.dumps(partial(suggest, study.space))).args[0] == study.space
