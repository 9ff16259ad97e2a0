"""A study as a journal of Optuna's, for its own tools: optuna-dashboard, plots, `optuna.load_study`."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from sparse_model import storage
from sweeps.frontier.queries import Frontier
from sweeps.search.objectives import METRICS
from sweeps.search.suggestions import Suggestion, Suggestions
from sweeps.study.folder import study_at
from sweeps.study.space import Space, suggest

SHOWN = ("status", "reason", "tasks_solved", "tasks_counted", "l0", "tokens", "train_seconds", "prune_seconds")
"""Columns of a trial's row that its user attributes hold."""


def export_journal(uri: str, target: str) -> int:
    """Write the study at `uri` into one file; the number of its trials. One there already is replaced.

    A trial for every suggestion and seed: complete where its row is eligible, with `METRICS` for values; failed with
    its status and reason where not; running where it has no row.
    """
    study = study_at(uri).model_copy(update={"storage": storage.parent(uri)})
    rows = {row["trial"]: row for row in Frontier(uri, may_be_empty=True).trials().to_pylist()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.log"
        journal = JournalStorage(JournalFileBackend(str(path)))
        found = optuna.create_study(study_name=study.name, directions=["minimize"] * len(METRICS), storage=journal)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is called experimental
            found.set_metric_names(list(METRICS))
        trials = list(_trials(study.space, Suggestions(study).read(), rows))
        found.add_trials(trials)
        storage.write_bytes_atomic(target, path.read_bytes())
    return len(trials)


def _trials(space: Space, made: list[Suggestion], rows: dict[str, dict[str, Any]]) -> Iterator[FrozenTrial]:
    for one in made:
        drawn = FixedTrial(one.params or {})
        if one.params is not None:
            suggest(space, drawn)
        for key in one.keys:
            row = rows.get(key)
            eligible = row is not None and row["eligible"]
            about = {name: row[name] for name in SHOWN if row[name] is not None} if row else {}
            yield create_trial(
                state=TrialState.COMPLETE if eligible else TrialState.FAIL if row else TrialState.RUNNING,
                params=drawn.params,
                distributions=drawn.distributions,
                values=[row[metric] for metric in METRICS] if row and eligible else None,
                user_attrs={"trial": key, "kind": one.config["kind"], "drawn_by": one.drawn_by} | about,
            )
