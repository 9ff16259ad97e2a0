"""Several searches of one circuit: from other seeds, or with hyper-parameters that Optuna picks (METHOD 6, tuning)."""

from __future__ import annotations

from collections.abc import Callable

from circuit.search.config import PruneConfig

FACTORS = {"k_coef": 10.0, "lr": 3.0, "init_bias": 3.0, "weight_decay": 10.0, "temperature": 3.0}
"""Tuned fields, and how many times larger or smaller than the configuration's value each may be."""


def explore(config: PruneConfig, search: Callable[[PruneConfig], float]) -> None:
    """Run `search`, which gives what is to be small, with every configuration of the budget.

    These are `config.restarts` seeds, the first being the configuration itself; where `config.tuning_trials` is
    above 0, that many points of a Bayesian search follow, which starts from the configuration's own.
    """
    seeds = [config.model_copy(update={"seed": (config.seed + i) % 2**64}) for i in range(config.restarts)]
    results = [search(start) for start in seeds]
    if config.tuning_trials:
        _tune(config, results[0], search)


def _tune(config: PruneConfig, result: float, search: Callable[[PruneConfig], float]) -> None:
    import optuna  # takes a second, and only tuning needs it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: _range(getattr(config, name), factor, name) for name, factor in FACTORS.items()}
    distributions = {name: optuna.distributions.FloatDistribution(*ends, log=True) for name, ends in space.items()}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=config.seed % 2**32, n_startup_trials=4))
    # where the range cannot be around it, the nearest that is in it stands for what was searched with
    centre = {name: min(max(getattr(config, name), low), high) for name, (low, high) in space.items()}
    study.add_trial(optuna.trial.create_trial(params=centre, distributions=distributions, value=result))
    for _ in range(config.tuning_trials):
        trial = study.ask(distributions)
        study.tell(trial, search(config.model_copy(update=trial.params)))


def _range(centre: float, factor: float, name: str) -> tuple[float, float]:
    centre = max(centre, 1e-6)
    return centre / factor, min(centre * factor, 1.0) if name == "init_bias" else centre * factor
