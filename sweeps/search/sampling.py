"""Optuna, asked and told in bounded time: a study that forgets all but the trials that matter.

What a sampler costs grows with its history (measured: TPE with two objectives 3 ms per suggestion after 100 trials,
55 ms after 4000). So whenever `MOST` results have been told, the Optuna study is begun anew with `KEPT` of its trials:
half of them the best (by non-dominated rank), half the latest, which hold the population of NSGA-II. This happens at
fixed numbers of results, so what is drawn stays a function of what was told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from sweeps.frontier.pareto import non_dominated
from sweeps.search.objectives import METRICS
from sweeps.study.space import Space, TrialConfig, suggest
from sweeps.study.study import SearchConfig

MOST = 512
"""Results after which the history is cut."""
KEPT = 256
"""Trials that a cut leaves."""


class BoundedStudy:
    """Two-objective search over a space: `ask` for parameters by a name, `tell` what came of them."""

    def __init__(self, name: str, space: Space, search: SearchConfig, known: Sequence[FrozenTrial] = ()) -> None:
        """`known` are finished trials to learn from (warm start); those to begin with are `search.try_first`."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._name, self._space, self._sampler = name, space, sampler_of(search)
        self._first = [space.params(entry) for entry in search.try_first]
        self._blind = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=search.seed))
        self._asked: dict[str, tuple[optuna.Study, optuna.Trial]] = {}
        self._study = self._begin(known)
        self._told = len(known)

    def ask(self, name: str) -> dict[str, Any]:
        """The next parameters, by template path."""
        if self._first:
            self._study.enqueue_trial(self._first.pop(0))
        trial = self._study.ask()
        suggest(self._space, trial)
        self._asked[name] = self._study, trial
        return dict(trial.params)

    def ask_blindly(self, name: str) -> dict[str, Any]:
        """Parameters drawn at random, whatever was told: for when the sampler keeps to what it knows."""
        drawn = self._blind.ask()
        suggest(self._space, drawn)
        self._first.insert(0, dict(drawn.params))
        return self.ask(name)

    def tell(self, name: str, values: Sequence[float]) -> None:
        """What came of parameters that were asked for, in the order of `METRICS`."""
        study, trial = self._asked.pop(name)
        frozen = study.tell(trial, list(values))
        if study is not self._study:  # asked before the last cut
            self._study.add_trial(frozen)
        self._told += 1
        if self._told >= MOST:
            finished = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            self._study, self._told = self._begin(most_telling(finished, KEPT)), KEPT

    def forget(self, name: str) -> None:
        """Parameters that will not be tried."""
        study, trial = self._asked.pop(name)
        study.tell(trial, state=TrialState.FAIL)  # which samplers leave out of account

    def _begin(self, known: Sequence[FrozenTrial]) -> optuna.Study:
        directions = ["minimize"] * len(METRICS)
        study = optuna.create_study(study_name=self._name, directions=directions, sampler=self._sampler)
        study.add_trials(known)
        return study


def most_telling(trials: Sequence[FrozenTrial], count: int) -> list[FrozenTrial]:
    """Of trials in order of telling: half of `count` by non-dominated rank, the rest the latest; in that order."""
    best: list[int] = []
    left = list(range(len(trials)))
    while len(best) < count // 2 and left:
        front = {left[i] for i in non_dominated([(trials[j].values[0], trials[j].values[1]) for j in left])}
        best += sorted(front)
        left = [i for i in left if i not in front]
    chosen = set(best[: count // 2])
    for i in reversed(range(len(trials))):
        if len(chosen) == count:
            break
        chosen.add(i)
    return [trials[i] for i in sorted(chosen)]


def sampler_of(search: SearchConfig) -> optuna.samplers.BaseSampler:
    """The sampler a study names."""
    if search.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=search.startup)
    if search.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=search.seed, population_size=max(2, search.in_flight))
    return optuna.samplers.RandomSampler(seed=search.seed)


def finished_trial(
    space: Space, config: TrialConfig, values: Sequence[float], attributes: Mapping[str, Any] | None = None
) -> FrozenTrial | None:
    """A configuration and what came of it as a trial for Optuna; None of one that is not in the space."""
    params = space.params_of(config)
    if params is None:
        return None
    drawn = FixedTrial(params)
    suggest(space, drawn)
    return create_trial(
        params=drawn.params,
        distributions=drawn.distributions,
        values=list(values),
        user_attrs=dict(attributes or {}),
    )
