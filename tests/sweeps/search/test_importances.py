"""Warm starts, and rows as an Optuna study."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from circuit.search.config import SEARCH_VERSION
from sparse_model.errors import InputError
from sweeps.cli import status_of
from sweeps.frontier.rows import write_trial_row
from sweeps.search.draws import Assignment, StudySearch
from sweeps.search.importances import importances, optuna_study
from sweeps.search.objectives import METRICS
from sweeps.search.sampling import OptunaSearch, finished_trial
from sweeps.search.suggestions import Suggestions
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
        ({}, {"search_version": SEARCH_VERSION - 1}),
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
    drawn = OptunaSearch("s", study.space, study.search)
    for i, seed in itertools.product(range(10), (0, 7)):
        params, _ = drawn.draw(i)
        config = study.space.config(params, seed)
        assert study.space.params_of(config) == params
        trial = finished_trial(study.space, config, (1.0, 2.0))
        assert trial is not None
        assert trial.params == params


def test_an_exported_journal_is_a_study_of_optunas_own(study_text: Text, tmp_path: Path) -> None:
    """Complete, failed and running trials, with their parameters; `sweeps search --export` writes it."""
    study = read_study(study_text({"search.trials": 6, "search.in_flight": 6}), "s")
    Path(study.root).mkdir(parents=True)
    (Path(study.root) / "study.yaml").write_text(study.to_yaml())
    search = StudySearch(study, {}, (), Suggestions(study))
    drawn = [one for _ in range(6) if isinstance(one := search.next_assignment(), Assignment)]
    for one in drawn[:4]:
        row = {"study": "tiny", "trial": one.key, "kind": one.config.kind, "suggestion": one.index, "status": "ok"}
        row |= {"eligible": True} | dict(zip(METRICS, figures(one.config), strict=True))
        if one is drawn[3]:
            row |= {"status": "failed", "reason": "why", "eligible": False}
        write_trial_row(study.root, row | {"seed": 0, "config": one.config.canonical_json()})
    path = str(tmp_path / "out" / "journal.log")
    assert status_of(["search", study.root, "--export", path]) == 0
    found = optuna.load_study(study_name="tiny", storage=JournalStorage(JournalFileBackend(path)))
    assert [trial.state.name for trial in found.trials] == ["COMPLETE"] * 3 + ["FAIL"] + ["RUNNING"] * 2
    assert found.metric_names == list(METRICS)
    for trial, one in zip(found.trials, drawn, strict=True):
        assert study.space.config(trial.params, 0) == one.config
        assert trial.user_attrs["trial"] == one.key
    assert found.trials[0].values == pytest.approx(figures(drawn[0].config))
    assert found.trials[3].user_attrs["reason"] == "why"
    assert found.best_trials
