"""Bounded history, warm starts, and rows as an Optuna study."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from sparse_model.errors import InputError
from sweeps.frontier.rows import write_trial_row
from sweeps.search import sampling
from sweeps.search.draws import Assignment, StudySearch
from sweeps.search.importances import importances, optuna_study
from sweeps.search.objectives import METRICS
from sweeps.search.sampling import BoundedStudy, finished_trial, most_telling
from sweeps.search.warmstart import warm_trials
from sweeps.show.slices import plot_slices
from sweeps.study.space import TrialConfig
from sweeps.study.study import Study, read_study

Text = Callable[..., str]


def figures(config: TrialConfig) -> tuple[float, float]:
    """Loss depends on the learning rate alone, edges on the width alone."""
    return 1 + 20 * config.training.lr, 100.0 * config.model.d_model


def run(study: Study, **more: Any) -> list[str]:
    """Run a study with `figures` for results, its rows written; the keys of its trials."""
    Path(study.root).mkdir(parents=True, exist_ok=True)
    (Path(study.root) / "study.yaml").write_text(study.to_yaml())
    search, keys = StudySearch(study, {}, warm_trials(study, "d")), []
    while isinstance(drawn := search.next_assignment(), Assignment):
        config = drawn.config
        values = dict(zip(METRICS, figures(config), strict=True))
        row = {"study": study.name, "trial": drawn.key, "kind": config.kind, "status": "ok", "eligible": True}
        row |= {"data": "d", "tasks_tried": 2, "target_loss": 0.15, "retried": False, "config": config.canonical_json()}
        row |= {"tasks_counted": 2, "tasks_without_edges": 0}
        write_trial_row(study.root, row | values | more)
        search.take_result(drawn.key, figures(config))
        keys.append(drawn.key)
    return keys


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_history_is_bounded_and_still_reproducible(
    study_text: Text, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setattr(sampling, "MOST", 12)
    monkeypatch.setattr(sampling, "KEPT", 6)
    study = read_study(study_text({"search.sampler": sampler}), "s")

    def draw() -> tuple[list[Any], int]:
        bounded, drawn, longest = BoundedStudy("s", study.space, study.search), [], 0
        in_flight: list[tuple[str, dict[str, Any]]] = []
        for i in range(40):
            in_flight.append((str(i), bounded.ask(str(i))))
            drawn.append(in_flight[-1][1])
            if len(in_flight) == 3:  # told after a cut that came after they were asked
                name, params = in_flight.pop(0)
                values = figures(study.space.config(params, 0))
                bounded.tell(name, values)
                assert any(trial.values == list(values) for trial in bounded._study.trials), "told, and forgotten"
            longest = max(longest, len(bounded._study.trials))
        return drawn, longest

    first, longest = draw()
    assert longest <= 12 + 3
    assert draw()[0] == first


def test_a_cut_keeps_the_best_and_the_latest() -> None:
    trials = [
        optuna.trial.create_trial(values=[loss, edges])
        for loss, edges in [(1, 9), (9, 9), (5, 5), (9, 9), (2, 8), (9, 9), (8, 8), (9, 9)]
    ]
    kept = most_telling(trials, 4)
    assert [tuple(trial.values) for trial in kept] == [(1, 9), (5, 5), (8, 8), (9, 9)]


def test_learning_goes_on_after_a_cut(study_text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws near the optimum (lr low, width 32) become usual although most of the history was dropped."""
    monkeypatch.setattr(sampling, "MOST", 20)
    monkeypatch.setattr(sampling, "KEPT", 10)
    study = read_study(study_text({"trial.kind": "dense"}), "s")
    bounded = BoundedStudy("s", study.space, study.search)
    losses = []
    for i in range(60):
        values = figures(study.space.config(bounded.ask(str(i)), 0))
        bounded.tell(str(i), values)
        losses.append(values[0])
    assert sum(losses[-20:]) < sum(losses[:20])


def test_rows_as_an_optuna_study(study_text: Text, tmp_path: Path) -> None:
    changes = {"search.trials": 60, "search.sampler": "random", "trial.model.d_model": {"choice": [32, 48, 64, 80]}}
    study = read_study(study_text(changes), "s")
    keys = run(study)
    found = optuna_study(study.root)
    assert found.study_name == study.name
    assert [trial.user_attrs["trial"] for trial in found.trials] == sorted(keys)
    for trial in found.trials:
        assert ("sparse.training.fraction" in trial.params) == (trial.user_attrs["kind"] == "sparse")
    table = importances(found).to_pylist()
    for kind in ("sparse", "dense"):
        shares = {row["parameter"]: row for row in table if row["kind"] == kind}
        assert max(shares.values(), key=lambda row: row["val_loss"])["parameter"] == "training.lr"
        assert max(shares.values(), key=lambda row: row["circuit_edges"])["parameter"] == "model.d_model"
    for name, head in (("s.png", b"\x89PNG"), ("s.svg", b"<?xml")):
        plot_slices(found, str(tmp_path / name))
        assert (tmp_path / name).read_bytes().startswith(head)
    with pytest.raises(InputError, match="allowed endings"):
        plot_slices(found, str(tmp_path / "s.exe"))


def test_too_few_trials_for_importances(study_text: Text) -> None:
    study = read_study(study_text({"search.trials": 2}), "s")
    run(study)
    with pytest.raises(InputError, match="at least 8 eligible trials"):
        importances(optuna_study(study.root))


def test_warm_start(study_text: Text) -> None:
    """Trials of an earlier study are learnt from, not repeated, and frozen once read."""
    earlier = read_study(study_text({"name": "earlier", "search.trials": 16}), "s")
    run(earlier)
    changes = {"name": "later", "search.warm_start": [earlier.root]}
    later = read_study(study_text(changes), "s")
    warm = warm_trials(later, "d")
    assert len(warm) == 16
    keys = run(later)
    hashes = {key.split("-")[1] for key in keys}
    assert not hashes & {key.split("-")[1] for key in run(earlier)}
    assert hashes != {key.split("-")[1] for key in run(read_study(study_text({"name": "cold"}), "s"))}
    write_trial_row(earlier.root, {"trial": "t99", "status": "ok", "eligible": True, "retried": False})
    assert len(warm_trials(later, "d")) == 16, "what was read first is kept"


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"trial.training.tokens": 30_000}, {}),
        ({"trial.training.lr": {"loguniform": [10.0, 20.0]}}, {}),
        ({}, {"data": "other"}),
        ({}, {"target_loss": 0.5}),
        ({}, {"tasks_tried": 7}),
        ({}, {"status": "failed"}),
    ],
)
def test_what_is_not_comparable_is_not_learnt_from(
    study_text: Text, change: dict[str, Any], row: dict[str, Any]
) -> None:
    earlier = read_study(study_text({"name": "earlier", "search.trials": 3}), "s")
    run(earlier, **row)
    later = read_study(study_text({"name": "later", "search.warm_start": [earlier.root]} | change), "s")
    assert warm_trials(later, "d") == []


def test_a_configuration_and_its_parameters_are_one_to_one(study_text: Text) -> None:
    study = read_study(study_text(), "s")
    bounded = BoundedStudy("s", study.space, study.search)
    for i, seed in itertools.product(range(10), (0, 7)):
        params = bounded.ask(f"{i}.{seed}")
        config = study.space.config(params, seed)
        assert study.space.params_of(config) == params
        trial = finished_trial(study.space, config, (1.0, 2.0))
        assert trial is not None
        assert trial.params == params
