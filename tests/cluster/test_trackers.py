"""Trackers offline: what a study tells TensorBoard, MLflow and W&B lies in its logs, for their programs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import unpack
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.storage.store_errors import StorageUnavailable
from sweeps.engine.trackers import LogFiles, check_trackers
from sweeps.frontier.queries import Frontier
from sweeps.study.study import read_study

INSTALLED = [name for name in ("mlflow", "wandb") if importlib.util.find_spec(name)]
"""Extras, which the demo does without."""


def events(path: Path) -> Iterator[Any]:
    """TensorBoard's records: a length and its check, content and its check."""
    content = path.read_bytes()
    while content:
        (length,) = unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


@pytest.mark.cluster
def test_what_lies_in_the_logs(study_text: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    changes = {"search.trials": 1, "tasks": ["else_elif"], "pruning": {"pairs": 4, "steps": 5}, "report": "none"}
    changes |= {"callbacks": ["tensorboard", *INSTALLED], "resources": {"concurrency": 1}}
    path.write_text(study_text(changes | {"trial.training.tokens": 60_000, "trial.training.log_every": 5}))
    offline = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MLFLOW"))}
    command = [sys.executable, "-m", "sweeps", "run", str(path), "--storage", str(tmp_path)]
    done = subprocess.run(command, env=offline, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = Frontier(str(tmp_path / "tiny")).trials().to_pylist()
    logs = tmp_path / "tiny" / "logs"
    assert sorted(entry.name for entry in logs.iterdir()) == sorted(["tensorboard", *INSTALLED])
    (file,) = (logs / "tensorboard" / row["trial"]).iterdir()
    told = [(event.step, value.tag, value.simple_value) for event in events(file) for value in event.summary.value]
    losses = {step: value for step, tag, value in told if tag.endswith("/train_loss") and "row" not in tag}
    assert max(losses) == 60_000 // (16 * 96)
    assert [value for _, tag, value in told if tag.endswith("row/val_loss")] == [pytest.approx(row["val_loss"])]
    if "mlflow" in INSTALLED:
        from mlflow.tracking import MlflowClient

        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        client = MlflowClient(tracking_uri=(logs / "mlflow").as_uri())
        (experiment,) = [one for one in client.search_experiments() if one.name == "tiny"]
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"
        assert run.data.params["training.lr"] == str(json.loads(row["config"])["training"]["lr"])
        assert run.data.metrics["row/val_loss"] == pytest.approx(row["val_loss"])
    if "wandb" in INSTALLED:
        (run_file,) = (logs / "wandb").glob("offline-run-*/run-*.wandb")
        assert run_file.stat().st_size > 1000


def test_logs_of_a_study_in_a_store_are_copied_as_they_grow(
    study_text: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(study_text({"storage": "memory://logs-of-it"}), "s")
    said: list[str] = []
    with LogFiles(study, said.append) as logs:
        (logs.folder / "deep").mkdir()
        (logs.folder / "deep" / "a").write_text("one")
        logs.on_step_end(1, [])
        assert storage.read_bytes(f"{study.root}/logs/deep/a") == b"one"
        (logs.folder / "deep" / "a").write_text("one and two")
        logs.on_step_end(2, [])
        assert storage.read_bytes(f"{study.root}/logs/deep/a") == b"one", "not at every step"
    assert storage.read_bytes(f"{study.root}/logs/deep/a") == b"one and two"

    def down(*_: Any) -> None:
        raise StorageUnavailable("storage: down")

    monkeypatch.setattr(storage, "upload", down)
    with LogFiles(study, said.append) as logs:
        (logs.folder / "b").write_text("x")
    assert "logs are not copied" in said[-1]


def test_a_tracker_that_is_not_installed_is_refused(
    study_text: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(study_text({"callbacks": ["wandb"]}), "s")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="callbacks: wandb: wandb is not installed; pip install"):
        check_trackers(study)
    with pytest.raises(InputError, match="callbacks"):
        read_study(study_text({"callbacks": ["comet"]}), "s")
