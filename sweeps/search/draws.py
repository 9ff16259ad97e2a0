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

from sweeps.search.objectives import PENALTIES, TOLD
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

    def as_config(self) -> dict[str, Any]:
        """As plain values, which is how it is sent to where the trial runs."""
        return {"key": self.key, "index": self.index, "trial": self.config.model_dump(mode="json")}


class StudySearch:
    """Hands out a study's trials, one per suggestion and seed, and is told what became of them.

    `known` maps keys of trials that need no run to their objectives; `warm` are trials of other studies to learn from,
    whose configurations are not tried again.
    """

    def __init__(self, study: Study, known: Mapping[str, Objectives], warm: Sequence[FrozenTrial] = ()) -> None:
        self._study, self._known = study, dict(known)
        self._optuna = BoundedStudy(study.name, study.space, study.search, warm)
        self._asked = self._told = 0
        self._seen = {self._written(trial.params) for trial in warm}
        self._exhausted = False
        self._names: dict[int, str] = {}  # of each suggestion that was not told yet: its name in Optuna,
        self._keys: dict[int, list[str]] = {}  # and its trials' keys, one per seed
        self._waiting: list[Assignment] = []

    def next_assignment(self) -> Assignment | Literal["wait", "finished"]:
        """The next trial to run; "wait" until a result is in; "finished" when all were handed out."""
        if not self._waiting and (nothing := self._advance()):
            return nothing
        return self._waiting.pop(0)

    def is_finished(self) -> bool:
        """Whether no trial is left to hand out; those handed out may be running."""
        return not self._waiting and self._advance() == "finished"

    def take_result(self, key: str, values: Objectives | None) -> None:
        """Take note of what a trial came to, in the order of `TOLD`; one that crashed (None) gets the penalties."""
        self._known[key] = PENALTIES if values is None else values

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
            means = [fmean(v[i] for v in values if v is not None) for i in range(len(TOLD))]
            self._optuna.tell(self._names.pop(self._told), means)
            del self._keys[self._told]
            self._told += 1
