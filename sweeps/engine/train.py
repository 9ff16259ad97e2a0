"""Training of a trial's model by Ray Train: data-parallel workers, checkpoints found again by the trial's key.

Checkpoints go past Ray's own register of them: that is one file, rewritten in place (ray 2.60, checkpoint_manager.py),
and a kill at that moment, or a checkpoint that got lost, makes Ray refuse the whole run from then on.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray.train
from ray import tune
from ray.train import TrainingFailedError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from sparse_model.training.checkpoint_folder import newest_step, remove_partial
from sweeps.engine.crashes import is_crash
from sweeps.frontier.rows import write_curve
from sweeps.study.space import TrialConfig
from sweeps.trial.outcome import Trained
from sweeps.trial.places import Trial
from sweeps.trial.stored import keep_training, stored_training, take_training

POLL_SECONDS = "0.5"
"""Ray Train's controller fetches one progress report per poll, and the next one blocks till then (2 s by default)."""

REPORT_SECONDS = 2.0
"""Between two reports of progress."""

SHUTDOWN_SECONDS = 30.0
"""For which workers may take to leave their process group."""

WORKER_RETRIES = 3
"""Times the workers are started again, to go on from the last checkpoint, after one of them died or raised."""


def train_model(trial: Trial) -> Trained:
    """Train and publish the model; a run of the same key that was interrupted continues from its last checkpoint.

    A model that is published, here or in a study of `models_from`, is not trained again. Machines may vanish as often
    as they like, as long as training gets to a later whole checkpoint in between.
    """
    if (trained := stored_training(trial)) is not None:
        return trained
    if (taken := take_training(trial)) is not None:
        model_uri, trained = taken
        tune.report({"stage": "taken", "model": model_uri})
        return trained
    for name, value in _TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    reached: int | None = None
    while True:
        remove_partial(trial.checkpoints_uri)
        try:
            with tempfile.TemporaryDirectory(prefix="circuit-sweeps-") as scratch:
                return _fit(trial, scratch)
        except TrainingFailedError as error:
            before, reached = reached, newest_step(trial.checkpoints_uri)
            if not is_crash(error) or (before is not None and reached <= before):
                raise


def _fit(trial: Trial, scratch: str) -> Trained:
    """Train with workers that are started again a few times. `scratch` is for Ray Train's own state.

    That state is of no use to us, and an outage of the study's storage would end the run if it lay there.
    """
    resources = trial.study.resources
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    trainer = DataParallelTrainer(
        train_worker,
        backend_config=ProcessGroup("nccl" if resources.gpus_per_worker else "gloo"),
        train_loop_config={
            "trial": trial.config.model_dump(mode="json"),
            "data": trial.run.data,
            "cache_bytes": resources.cache_bytes,
            "model_uri": trial.model_uri,
            "checkpoints_uri": trial.checkpoints_uri,
            "parallel": resources.parallel,
            "threads": resources.cpus_per_worker,
            "devices": resources.devices,
            "trained": (trial.trained_uri, trial.trained_from),
            "curve": (trial.study.root, trial.study.name, trial.key, trial.attempt),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in per_worker.items() if amount},
        ),
        run_config=ray.train.RunConfig(
            name=trial.key,
            storage_path=scratch,
            callbacks=[TuneReportCallback()],
            failure_config=ray.train.FailureConfig(max_failures=WORKER_RETRIES),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    summary = trainer.fit().return_value
    assert summary is not None, trial.key
    return Trained(**summary)


_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": POLL_SECONDS,
    # Workers may have to wait for pruning tasks of another trial to end.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
}


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One training worker: all take part in training and in publishing the model. Gives the fields of `Trained`."""
    import torch
    from ray.train.torch import get_device

    from sparse_model.data.loader import TokenDataset
    from sparse_model.saved.pretrained import save_pretrained
    from sparse_model.training.checkpoint import Checkpoints
    from sparse_model.training.loop import train

    torch.set_num_threads(config["threads"])
    trial = TrialConfig.model_validate(config["trial"])
    data = TokenDataset.open(config["data"], cache_bytes=config["cache_bytes"])
    result = train(
        trial.model,
        trial.training,
        data,
        checkpoints=Checkpoints(config["checkpoints_uri"], warn=_warn),
        report=TimedReports(),
        device=get_device(),
        parallel=config["parallel"],
    )
    if result.status == "ok":
        save_pretrained(result.model, data.tokenizer, config["model_uri"])
    metrics = {**result.metrics, "devices": config["devices"]}
    summary = {"status": result.status, "reason": result.reason, "metrics": metrics, "dtype": result.dtype}
    if ray.train.get_context().get_world_rank() == 0:
        root, study, key, attempt = config["curve"]
        write_curve(root, study, key, result.curve, attempt)
        if result.status == "ok":
            trained, made_from = config["trained"]
            keep_training(trained, made_from, summary)
    return summary


@dataclass
class ProcessGroup(BackendConfig):  # type: ignore[misc]
    """Ray's `TorchConfig`, but that torch is imported by workers alone.

    A trial's own process, and the controller of its workers beside it, hold no tensor: without torch, and what it
    brings along, they take less than half the memory, and it is the head's, of which a cluster has one.
    """

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        return _TorchOnWorkers

    @property
    def train_func_context(self) -> Any:
        return _on_own_gpu


class _TorchOnWorkers(Backend):  # type: ignore[misc]
    """What Ray's backend does, by Ray's own functions."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        count = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, address, port, backend_config.backend, rank, count)
                for rank in range(count)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        with suppress(ray.exceptions.GetTimeoutError):
            ray.get(worker_group.execute_async(_leave, len(worker_group) > 1), timeout=SHUTDOWN_SECONDS)


def _join(address: str, port: int, backend: str, rank: int, count: int) -> None:
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, count, "env://")


def _leave(is_group: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=is_group)


@contextmanager
def _on_own_gpu() -> Iterator[None]:
    from ray.train.torch.config import TorchConfigContextManager

    with TorchConfigContextManager():
        yield


class TimedReports:
    """Passes on what there is to report now and then, by the clock of the first worker, and at the last step.

    Each report waits for the one before it to be fetched, so that reports by steps would hold up what trains fast.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, metrics: dict[str, float]) -> None:
        """All workers call this alike."""
        from sparse_model.distributed.workers import from_first

        is_last = "step" in metrics and metrics["step"] >= metrics["steps"]  # before the first log, there is none
        if from_first(is_last or time.monotonic() >= self._next):
            ray.train.report({"stage": "training", **metrics})
            self._next = time.monotonic() + REPORT_SECONDS


def _warn(text: str) -> None:
    ray.train.report({"stage": "warning", "warning": text})
