"""Which configurations a study tries: stored draws first, then new ones by Optuna, each written before it is run.

A suggestion is drawn when fewer than `search.in_flight` others have no result yet, from all results that are in by
then; which those were is written with it (`sweeps.search.suggestions`). So a slow trial holds back no other than the
one that would have its place. A study that is started again runs what was drawn, and draws nothing of it anew.

So there is no Optuna storage that could disagree with the rows or break half-way: draws and rows are the persistent
study. `importances.optuna_study` gives it as an `optuna.Study`. (Ray's own `OptunaSearch` is not used: its history
grows without bound, cannot be begun anew, and knows no evaluated trials in a conditional space.)

A configuration that was drawn before would train the same model to the last bit: another is drawn instead.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from optuna import __version__ as OPTUNA
from optuna.trial import FrozenTrial

from sparse_model.storage.store_errors import StorageUnavailable
from sweeps.search.objectives import PENALTIES, TOLD
from sweeps.search.sampling import OptunaSearch
from sweeps.search.suggestions import DrawStore, InMemory, Suggestion, made_of
from sweeps.study.space import TrialConfig
from sweeps.study.study import Study

_log = logging.getLogger(__name__)
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
    whose configurations are not tried again; `kept` is where draws are stored, by default nowhere.
    """

    def __init__(
        self,
        study: Study,
        known: Mapping[str, Objectives],
        warm: Sequence[FrozenTrial] = (),
        kept: DrawStore | None = None,
    ) -> None:
        self._study, self._known, self._kept = study, dict(known), kept or InMemory()
        self._optuna = OptunaSearch(study.name, study.space, study.search, warm)
        self._seen = {self._written(trial.params) for trial in warm}
        self._exhausted = False
        self._made: dict[int, Suggestion] = {}
        self._open: set[int] = set()  # suggestions without all of their results,
        self._told: set[int] = set()  # and those with them
        self._of_key: dict[str, int] = {}
        self._unwritten: Suggestion | None = None
        self._waiting: list[Assignment] = []
        for made in self._kept.read():
            self._take(made)
        for number in sorted(self._open):
            self._tell(number)

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
        self._tell(self._of_key[key])

    def _advance(self) -> Literal["", "wait", "finished"]:
        """Draw until a trial waits to be handed out, or say why there is none."""
        while not self._waiting:
            number = next((i for i in range(self._study.search.trials) if i not in self._made), None)
            if number is None or self._exhausted:
                return "finished"
            if len(self._open) >= self._study.search.in_flight:
                return "wait"
            if not self._draw(number):
                return "finished" if self._exhausted else "wait"
        return ""

    def _draw(self, number: int) -> bool:
        """Draw and store a suggestion; False where there is none left, or the store is down."""
        made = self._unwritten or self._drawn(number)
        if made is None:
            self._exhausted = True
            return False
        self._unwritten = made
        try:
            held = self._kept.keep(made)
        except StorageUnavailable as error:  # trials that run go on meanwhile
            _log.warning("%s; no new trial begins until it is back", error)
            return False
        self._unwritten = None
        self._take(held)
        return True

    def _drawn(self, number: int) -> Suggestion | None:
        """A configuration that was not drawn before; None if none can be found."""
        for attempt in range(MOST_REPEATS):
            params, notes = self._optuna.draw(number, attempt, blindly=attempt >= SAMPLER_REPEATS)
            if self._written(params) not in self._seen:
                how = "random" if attempt >= SAMPLER_REPEATS else self._study.search.sampler
                return made_of(self._study, number, params, notes, self._told, f"{how}, optuna {OPTUNA}")
        return None

    def _take(self, made: Suggestion) -> None:
        """A suggestion that holds: its trials without a result wait to be run."""
        number = made.suggestion
        self._made[number] = made
        self._open.add(number)
        self._of_key |= dict.fromkeys(made.keys, number)
        if made.params is not None:
            self._seen.add(self._written(made.params))
            self._optuna.add(number, made.params, made.notes)
        for key, seed in zip(made.keys, self._study.seeds, strict=True):
            if key not in self._known:
                self._waiting.append(Assignment(key, number, made.trial(seed)))

    def _tell(self, number: int) -> None:
        """Tell Optuna of a suggestion whose results are all in."""
        made = self._made[number]
        values = [self._known[key] for key in made.keys if key in self._known]
        if number not in self._open or len(values) < len(made.keys):
            return
        self._open.remove(number)
        self._told.add(number)
        if made.params is not None:
            self._optuna.tell(number, [fmean(value[i] for value in values) for i in range(len(TOLD))])

    def _written(self, params: Mapping[str, Any]) -> str:
        return self._study.space.config(params, self._study.seeds[0]).canonical_json()
