"""Training of a trial's model by Ray Train: data-parallel workers, checkpoints found again by the trial's key."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback

from sparse_model.data.loader import TokenDataset
from sparse_model.pretrained import save_pretrained
from sparse_model.training import train
from sweeps.space import TrialConfig
from sweeps.trial import Trained, Trial

POLL_SECONDS = "0.5"
"""Ray Train's controller fetches one progress report per poll, and the next one blocks till then (2 s by default)."""

WORKER_RETRIES = 1


def train_model(trial: Trial) -> Trained:
    """Train and publish the model; a run of the same key that was interrupted continues from its last checkpoint."""
    for name, value in _TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    resources = trial.study.resources
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "trial": trial.config.model_dump(mode="json"),
            "data": trial.plan.data,
            "cache_bytes": resources.cache_bytes,
            "model_uri": trial.model_uri,
            "threads": resources.cpus_per_worker,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={name: amount for name, amount in per_worker.items() if amount},
        ),
        run_config=ray.train.RunConfig(
            name=trial.key,
            storage_path=trial.train_root,
            callbacks=[TuneReportCallback()],
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
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
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One training worker: all take part in training, rank 0 publishes the model. Gives the fields of `Trained`."""
    torch.set_num_threads(config["threads"])
    trial = TrialConfig.model_validate(config["trial"])
    data = TokenDataset.open(config["data"], cache_bytes=config["cache_bytes"])
    result = train(trial.model, trial.training, data, checkpoints=RayCheckpoints(), report=_report, device=get_device())
    if result.status == "ok" and _rank() == 0:
        save_pretrained(result.model, data.tokenizer, config["model_uri"])
    return {"status": result.status, "reason": result.reason, "metrics": result.metrics}


class RayCheckpoints:
    """A `CheckpointStore` in which Ray Train keeps and finds the checkpoints."""

    def restore(self, load: Callable[[Path], None]) -> bool:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return False
        with checkpoint.as_directory() as folder:
            load(Path(folder))
        return True

    def save(self, step: int, metrics: dict[str, float], write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if _rank() == 0:
                write(Path(folder))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(_progress(metrics), checkpoint=checkpoint)


def _report(metrics: dict[str, float]) -> None:
    ray.train.report(_progress(metrics))


def _progress(metrics: dict[str, float]) -> dict[str, Any]:
    return {"stage": "training", **metrics}


def _rank() -> int:
    return int(ray.train.get_context().get_world_rank())
