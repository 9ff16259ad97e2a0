"""A study's rows as an `optuna.Study`, and which parameters mattered."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pyarrow as pa
from optuna.trial import FrozenTrial

from sparse_model.errors import InputError
from sweeps.frontier.queries import Frontier
from sweeps.search.objectives import METRICS
from sweeps.search.sampling import finished_trial
from sweeps.study.folder import study_at
from sweeps.study.space import TRIAL_KINDS, TrialConfig

LEAST_TRIALS = 8
"""Below which no importance is computed: it would be noise."""
BINS = 4
"""Into which values of a numeric parameter are put, equally full."""


def optuna_study(uri: str) -> optuna.Study:
    """The study at `uri` with every eligible trial that its space has, in order of suggestion.

    Named like the study, it minimises `METRICS`; each trial's user attributes are its key and kind. It holds rows as
    they are now: the search itself needs no other storage (`sweeps.search.draws`).
    """
    study = study_at(uri)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = optuna.create_study(study_name=study.name, directions=["minimize"] * len(METRICS))
    rows = Frontier(uri).trials()
    for row in rows.filter(rows["eligible"]).to_pylist():
        config = TrialConfig.model_validate_json(row["config"])
        trial = finished_trial(
            study.space, config, [row[m] for m in METRICS], {"trial": row["trial"], "kind": config.kind}
        )
        if trial is not None:
            found.add_trial(trial)
    return found


def importances(study: optuna.Study) -> Any:
    """A `pyarrow.Table`: how much of each figure's spread each parameter explains by itself, by kind of trial.

    The share is the correlation ratio of the figure's ranks between groups of equal (or, of numbers, near) values,
    less what chance would explain: 1 is all, 0 nothing. (Optuna's PED-ANOVA mistakes chance for importance at tens of
    trials, its fANOVA needs scikit-learn.) Kinds with fewer than `LEAST_TRIALS` trials are left out; InputError if
    that leaves nothing.
    """
    rows: list[dict[str, Any]] = []
    for kind in TRIAL_KINDS:
        trials = [trial for trial in study.trials if trial.user_attrs["kind"] == kind]
        if len(trials) >= LEAST_TRIALS:
            rows += [
                {"kind": kind, "parameter": name, "trials": len(trials)}
                | {metric: explained(trials, name, i) for i, metric in enumerate(METRICS)}
                for name in _varied(trials)
            ]
    if not rows:
        raise InputError(f"importances: at least {LEAST_TRIALS} eligible trials of one kind are needed")
    return pa.Table.from_pylist(rows).sort_by([("kind", "descending"), (METRICS[0], "descending")])


def explained(trials: list[FrozenTrial], name: str, metric: int) -> float:
    """Share of the spread of a figure's ranks that a parameter explains, adjusted for chance; 0 to 1."""
    values = np.array([trial.values[metric] for trial in trials])
    order = np.sort(values)
    ranks = np.searchsorted(order, values, side="left") + np.searchsorted(order, values, side="right")
    total = ((ranks - ranks.mean()) ** 2).sum()
    groups = _groups([trial.params[name] for trial in trials])
    n_groups = len(set(groups))
    if total == 0 or n_groups >= len(trials):
        return 0.0
    within = sum(((ranks[groups == g] - ranks[groups == g].mean()) ** 2).sum() for g in set(groups))
    chance = (len(trials) - 1) / (len(trials) - n_groups)
    return float(max(0.0, 1 - chance * within / total))


def _groups(values: list[Any]) -> Any:
    """The number of its group for every value: equal ones together, many numbers in equally full bins."""
    distinct = sorted(set(values), key=str)
    if len(distinct) <= BINS or not all(isinstance(value, int | float) for value in distinct):
        return np.array([distinct.index(value) for value in values])
    edges = np.quantile(np.array(values, dtype=float), np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, np.array(values, dtype=float), side="left")


def _varied(trials: list[FrozenTrial]) -> list[str]:
    """Parameters that all of the trials have and that differ among them."""
    names = set.intersection(*(set(trial.params) for trial in trials))
    return sorted(name for name in names if len({str(trial.params[name]) for trial in trials}) > 1)
