"""Tune's callbacks for trackers, told of trials by their keys and of figures alone.

Without a server (`MLFLOW_TRACKING_URI`, `WANDB_API_KEY`) they write files below `<study>/logs`, which their programs
read: `tensorboard --logdir`, `mlflow server --backend-store-uri`, `wandb sync`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.air.integrations.wandb import WandbLoggerCallback
from ray.tune.logger import TBXLoggerCallback
from ray.tune.result import TIMESTEPS_TOTAL, TRAINING_ITERATION

from sweeps.study.study import Study


def trackers_of(study: Study, folder: Path) -> list[Any]:
    """The callbacks that a study names, which write below the folder where they have no server."""
    made: dict[str, Callable[[Study, Path], Any]] = {
        "tensorboard": lambda study, folder: TensorBoard(folder),
        "mlflow": mlflow_of,
        "wandb": wandb_of,
    }
    return [made[name](study, folder) for name in study.callbacks]


def reported(result: Mapping[str, Any]) -> dict[str, Any]:
    """What trackers are told of a report: its numbers, at the step of training they are of."""
    row = result.get("row") or {}
    numbers = {name: value for name, value in result.items() if _is_figure(name, value)}
    numbers |= {f"row/{name}": value for name, value in row.items() if _is_figure(name, value)}
    step = int(result.get("step") or 0)
    return numbers | {TRAINING_ITERATION: result[TRAINING_ITERATION], TIMESTEPS_TOTAL: step or None}


def settings_of(trial: Any) -> dict[str, Any]:
    """A trial's configuration, flat: `training.lr`."""
    config = trial.config["trial"]
    flat = {f"{part}.{name}": value for part in ("model", "training") for name, value in config[part].items()}
    return {"trial": trial.config["key"], "kind": config["kind"]} | flat


def _is_figure(name: str, value: Any) -> bool:
    timing = ("time_", "timestamp", "pid", "iterations_", "training_iteration", "done", "schema_version")
    return isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith(timing)


class _Told:
    """Mixed into a callback of Tune's."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune stores its callbacks beside its state, from which we never restore."""
        return {}

    def log_trial_result(self, iteration: int, trial: Any, result: Mapping[str, Any]) -> None:
        super().log_trial_result(iteration, trial, reported(result))  # type: ignore[misc]


class TensorBoard(_Told, TBXLoggerCallback):  # type: ignore[misc]
    """A folder of events for each trial."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder / "tensorboard"

    def log_trial_start(self, trial: Any) -> None:
        if trial in self._trial_writer:
            self._trial_writer[trial].close()
        where = self._folder / str(trial.config["key"])
        self._trial_writer[trial] = self._summary_writer_cls(str(where), flush_secs=30)
        self._trial_result[trial] = {}


class Mlflow(_Told, MLflowLoggerCallback):  # type: ignore[misc]
    """A run for each trial."""

    def log_trial_start(self, trial: Any) -> None:
        if trial not in self._trial_runs:
            tags = {"trial_name": trial.config["key"], "mlflow.runName": trial.config["key"]}
            self._trial_runs[trial] = self.mlflow_util.start_run(tags=tags, run_name=trial.config["key"]).info.run_id
        self.mlflow_util.log_params(run_id=self._trial_runs[trial], params_to_log=settings_of(trial))


class Wandb(_Told, WandbLoggerCallback):  # type: ignore[misc]
    """A run for each trial, in a process of its own."""


def mlflow_of(study: Study, folder: Path) -> Mlflow:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        (folder / "mlflow").mkdir(parents=True, exist_ok=True)
        uri = (folder / "mlflow").as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return Mlflow(tracking_uri=uri, experiment_name=study.name)


def wandb_of(study: Study, folder: Path) -> Wandb:
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    os.environ["WANDB_MODE"] = mode
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    return Wandb(project="circuit-sweeps", group=study.name, mode=mode, dir=str(folder))
