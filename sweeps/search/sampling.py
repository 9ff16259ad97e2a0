"""Optuna, asked and told: draws and their results go in by number, parameters come out.

A draw is a function of the study, of the draws before it, of the results that are in, and of nothing else: every one
has a random state of its own. (The state of one sampler that drew all of them could be had again only by drawing all
of them again, which another version of Optuna or numpy does otherwise.)

Nothing is forgotten: with 10,000 trials in the history, TPE takes 0.3 to 0.45 s per suggestion of six parameters
(`benchmarks/sweep_scale.py --history 10000`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from sweeps.search.genetic import KindwiseGenetic
from sweeps.search.objectives import METRICS
from sweeps.study.space import Space, TrialConfig, suggest
from sweeps.study.study import SearchConfig

Named = dict[str, Any]


class OptunaSearch:
    """Two-objective search over a space: `draw` parameters for a suggestion, `add` those that hold, `tell` results."""

    def __init__(self, name: str, space: Space, search: SearchConfig, known: Sequence[FrozenTrial] = ()) -> None:
        """`known` are finished trials to learn from (warm start); those to begin with are `search.try_first`."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._search = space, search
        self._first = [space.params(entry) for entry in search.try_first]
        self._study = optuna.create_study(study_name=name, directions=["minimize"] * len(METRICS))
        self._study.add_trials(known)
        self._numbers: dict[int, int] = {}  # of suggestions among Optuna's trials

    def draw(
        self, suggestion: int, attempt: int = 0, *, blindly: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters by template path for a suggestion, and what the sampler notes about them.

        The same attempt gives the same as long as nothing is told meanwhile. `blindly`: at random, whatever was told.
        """
        seed = _seed(self._search.seed, suggestion, attempt)
        self._study.sampler = sampler_of(self._search, seed)
        if blindly:
            self._study.enqueue_trial(self._at_random(seed))
        elif suggestion < len(self._first):
            self._study.enqueue_trial(self._first[suggestion])
        trial = self._study.ask()
        suggest(self._space, trial)
        params = dict(trial.params)
        notes = _notes(self._study.get_trials(deepcopy=False)[trial.number].system_attrs)
        self._study.tell(trial, state=TrialState.FAIL)  # samplers leave it out of account: what holds is added
        return params, notes

    def _at_random(self, seed: int) -> dict[str, Any]:
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
        suggest(self._space, trial)
        return dict(trial.params)

    def add(self, suggestion: int, params: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Parameters that are tried from now on."""
        drawn = _drawn(self._space, params)
        running = create_trial(
            state=TrialState.RUNNING,
            params=drawn.params,
            distributions=drawn.distributions,
            system_attrs=dict(notes),
            user_attrs={"suggestion": suggestion},
        )
        self._numbers[suggestion] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(running)

    def tell(self, suggestion: int, values: Sequence[float]) -> None:
        """What came of a suggestion that was added, in the order of `METRICS`."""
        self._study.tell(self._numbers.pop(suggestion), list(values))


def sampler_of(search: SearchConfig, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler a study names."""
    if search.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=search.startup)
    if search.sampler == "nsga2":
        return KindwiseGenetic(seed)
    return optuna.samplers.RandomSampler(seed=seed)


def finished_trial(
    space: Space, config: TrialConfig, values: Sequence[float], attributes: Mapping[str, Any] | None = None
) -> FrozenTrial | None:
    """A configuration and what came of it as a trial for Optuna; None of one that is not in the space."""
    params = space.params_of(config)
    if params is None:
        return None
    drawn = _drawn(space, params)
    return create_trial(
        params=drawn.params,
        distributions=drawn.distributions,
        values=list(values),
        user_attrs=dict(attributes or {}),
    )


def _drawn(space: Space, params: Mapping[str, Any]) -> FixedTrial:
    """Parameters with their distributions."""
    drawn = FixedTrial(dict(params))
    suggest(space, drawn)
    return drawn


def _seed(seed: int, suggestion: int, attempt: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {suggestion} {attempt}".encode()).digest()[:4])


def _notes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What a sampler has to find again of a trial, such as its generation; not what it was asked to begin with."""
    return {name: value for name, value in attributes.items() if name != "fixed_params"}
