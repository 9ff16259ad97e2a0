"""The study's search behind Tune's interface: ids, results and crashes as Tune gives them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ray.tune.search.searcher import Searcher

from sweeps.engine.tune_search import TuneSearch
from sweeps.search.draws import StudySearch
from sweeps.search.objectives import PENALTIES, TOLD
from sweeps.study.study import read_study
from sweeps.trial.places import StudyRun, Trial

GOOD = dict(zip(TOLD, (2.0, 30.0), strict=True))


@pytest.fixture
def inner(study_text: Callable[..., str]) -> StudySearch:
    return StudySearch(read_study(study_text({"search.trials": 2, "search.in_flight": 1}), "s"), {})


@pytest.mark.parametrize(
    ("result", "error", "values"),
    [
        (GOOD, False, (2.0, 30.0)),
        (GOOD, True, PENALTIES),
        (None, False, PENALTIES),
        ({"stage": "pruning"}, False, PENALTIES),
    ],
)
def test_results_reach_the_trial_they_are_of(
    inner: StudySearch, result: dict[str, float] | None, error: bool, values: tuple[float, float]
) -> None:
    search = TuneSearch(inner)
    first = search.suggest("a")
    assert isinstance(first, dict)
    assert search.suggest("b") is None, "one in flight"
    search.on_trial_result("a", {"stage": "training"})
    search.on_trial_complete("a", result, error)
    assert inner._known == {first["key"]: values}
    assert isinstance(search.suggest("b"), dict)
    search.on_trial_complete("b", GOOD)
    assert search.suggest("c") == Searcher.FINISHED


def test_what_is_handed_out_is_a_trial(inner: StudySearch) -> None:
    config = TuneSearch(inner).suggest("a")
    assert isinstance(config, dict)
    trial = Trial.of(config, StudyRun(inner._study, "data"))
    assert (trial.key, trial.index) == (config["key"], 0)
    assert trial.config.key(0) == trial.key
