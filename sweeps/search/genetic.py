"""NSGA-II in a space whose kinds of trials have parameters of their own.

Optuna's crosses only parameters that all trials have, and draws the others at random: of a space of sparse and dense
trials, nearly all. Here a child has the kind of one parent and that kind's parameters, and takes from the other what
both have. Selection, crowding and generations are Optuna's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

POPULATION = 10
"""Trials of a generation: with 20, sixty trials came to no more than chance, whatever was in flight."""
MUTATION = 1.5
"""Parameters of a child, on average, that are drawn anew."""
NUDGE = 0.2
"""Standard deviation of the step of a number that is changed a little, as a share of its range."""


class KindwiseGenetic(optuna.samplers.NSGAIISampler):  # type: ignore[misc]
    """`optuna.samplers.NSGAIISampler` over all parameters that any trial has."""

    def __init__(self, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # strategies are called experimental
            super().__init__(population_size=POPULATION, seed=seed, child_generation_strategy=self._child)
        self._random = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every parameter of any trial; of a child, those that its kind has are asked for."""
        trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        return {name: kind for one in trials for name, kind in one.distributions.items()}

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The best of all earlier generations, and of other studies: Optuna remembers them as they were when a
        generation began, and a study that goes on could not find them again."""
        if generation == 0:
            return []
        trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        key = self._get_generation_key()
        earlier = [trial for trial in trials if trial.system_attrs.get(key, -1) < generation]
        best: list[FrozenTrial] = self._elite_population_selection_strategy(study, earlier)
        return best

    def _child(
        self, study: optuna.Study, space: Mapping[str, BaseDistribution], parents: Sequence[FrozenTrial]
    ) -> dict[str, Any]:
        first, second = self._better(parents), self._better(parents)
        child = dict(first.params)
        for name in child:
            if name != "kind" and name in second.params and self._random.random() < 0.5:
                child[name] = second.params[name]
        for name in list(child):
            if self._random.random() < MUTATION / len(first.params):
                del child[name]  # is drawn anew
            elif name in space and self._random.random() < 0.5:
                child[name] = self._stepped(space[name], child[name])
        return child

    def _better(self, parents: Sequence[FrozenTrial]) -> FrozenTrial:
        """Of two by chance, one that the other does not dominate."""
        one, other = (parents[int(i)] for i in self._random.integers(len(parents), size=2))
        dominated = all(a <= b for a, b in zip(other.values, one.values, strict=True)) and other.values != one.values
        return other if dominated else one

    def _stepped(self, distribution: BaseDistribution, value: Any) -> Any:
        """A number a little away, in the measure it is drawn in; a choice as it is."""
        if isinstance(distribution, CategoricalDistribution):
            return value
        low, high, at = float(distribution.low), float(distribution.high), float(value)
        if distribution.log:
            low, high, at = np.log(low), np.log(high), np.log(at)
        moved = float(np.clip(at + self._random.normal(0, NUDGE * (high - low)), low, high))
        moved = float(np.exp(moved)) if distribution.log else moved
        moved = min(max(moved, distribution.low), distribution.high)
        if isinstance(distribution, optuna.distributions.IntDistribution):
            steps = round((moved - distribution.low) / distribution.step)
            return min(distribution.low + steps * distribution.step, distribution.high)
        return moved
