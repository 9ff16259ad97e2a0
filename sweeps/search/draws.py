"""Which configurations a study tries: Optuna behind Ray Tune, as a pure function of the study and its stored rows.

Suggestion n is drawn when, and only when, the results of suggestions 0 … n - in_flight have been told, in that order.
Results that come early wait. So neither the order in which trials finish nor any number of kills changes what is
drawn; a study that is started again draws the same suggestions, and those with a stored row are told from it.

So there is no Optuna storage that could disagree with the rows or break half-way: the rows are the persistent study.
`importances.optuna_study` gives it as an `optuna.Study`. (Ray's own `OptunaSearch` is not used: its history grows
without bound, cannot be begun anew, and knows no evaluated trials in a conditional space.)

A configuration that was drawn before would train the same model to the last bit: it is forgotten and another drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from optuna.trial import FrozenTrial
from ray.tune.search.searcher import Searcher

from sweeps.search.objectives import METRICS, PENALTIES
from sweeps.search.sampling import BoundedStudy
from sweeps.study.space import TrialConfig
from sweeps.study.study import Study

Objectives = tuple[float, float]

SAMPLER_REPEATS = 10
"""Configurations drawn before, in a row, after which the next are drawn at random: a sampler may prefer a small part
of the space, all of which was tried."""
MOST_REPEATS = 110
"""After which the space counts as exhausted."""


@dataclass(frozen=True)
class Assignment:
    """One model to train: the trial's key, its configuration, and the suggestion it belongs to."""

    key: str
    index: int
    config: TrialConfig


class StudySearch(Searcher):  # type: ignore[misc]
    """Hands a study's trials to Tune, one per suggestion and seed; `num_samples` is to be -1.

    `known` maps keys of trials that need no run to their objectives; `warm` are trials of other studies to learn from,
    whose configurations are not tried again.
    """

    def __init__(self, study: Study, known: Mapping[str, Objectives], warm: Sequence[FrozenTrial] = ()) -> None:
        super().__init__(metric=list(METRICS), mode=["min"] * len(METRICS))
        self._study, self._known = study, dict(known)
        self._optuna = BoundedStudy(study.name, study.space, study.search, warm)
        self._asked = self._told = 0
        self._seen = {self._written(trial.params) for trial in warm}
        self._exhausted = False
        self._names: dict[int, str] = {}  # of each suggestion that was not told yet: its name in Optuna,
        self._keys: dict[int, list[str]] = {}  # and its trials' keys, one per seed
        self._waiting: list[Assignment] = []
        self._running: dict[str, Assignment] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial as Tune's config; None until a result is in; Searcher.FINISHED when all were handed out."""
        if not self._waiting and (nothing := self._advance()):
            return None if nothing == "wait" else str(Searcher.FINISHED)
        self._running[trial_id] = assignment = self._waiting.pop(0)
        return {
            "key": assignment.key,
            "index": assignment.index,
            "trial": assignment.config.model_dump(mode="json"),
        }

    def is_finished(self) -> bool:
        """Whether no trial is left to hand out; those handed out may be running."""
        return not self._waiting and self._advance() == "finished"

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take note of a result; a crashed trial has none and gets the penalties."""
        assignment = self._running.pop(trial_id)
        found = result is not None and all(metric in result for metric in METRICS)
        self._known[assignment.key] = (
            (result[METRICS[0]], result[METRICS[1]]) if found and result and not error else PENALTIES
        )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Progress reports mean nothing to the search."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state follows from the study and its rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the state follows from the study and its rows."""

    def _advance(self) -> Literal["", "wait", "finished"]:
        """Draw until a trial waits to be handed out, or say why there is none."""
        while not self._waiting:
            self._tell()
            if self._asked == self._study.search.trials or self._exhausted:
                return "finished"
            if self._asked - self._told >= self._study.search.in_flight:
                return "wait"
            self._ask()
        return ""

    def _ask(self) -> None:
        index = self._asked
        params = self._draw(index)
        if params is None:
            self._exhausted = True
            return
        configs = [self._study.space.config(params, seed) for seed in self._study.seeds]
        assignments = [Assignment(config.key(index), index, config) for config in configs]
        self._keys[index] = [assignment.key for assignment in assignments]
        self._waiting += [assignment for assignment in assignments if assignment.key not in self._known]
        self._asked += 1

    def _draw(self, index: int) -> dict[str, Any] | None:
        """Parameters that were not drawn before; None if none can be found."""
        for attempt in range(MOST_REPEATS):
            name = f"{index}.{attempt}"
            params = self._optuna.ask(name) if attempt < SAMPLER_REPEATS else self._optuna.ask_blindly(name)
            written = self._written(params)
            if written not in self._seen:
                self._seen.add(written)
                self._names[index] = name
                return params
            self._optuna.forget(name)
        return None

    def _written(self, params: Mapping[str, Any]) -> str:
        return self._study.space.config(params, self._study.seeds[0]).canonical_json()

    def _tell(self) -> None:
        """Tell Optuna what the next question may know, in order, and no more than that."""
        while self._told <= self._asked - self._study.search.in_flight:
            values = [self._known.get(key) for key in self._keys[self._told]]
            if None in values:
                return
            means = [fmean(v[i] for v in values if v is not None) for i in range(len(METRICS))]
            self._optuna.tell(self._names.pop(self._told), means)
            del self._keys[self._told]
            self._told += 1
