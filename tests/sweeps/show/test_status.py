"""Where a study stands, told from its folder."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sweeps.cli import status_of
from sweeps.frontier.rows import write_circuit_rows, write_trial_row
from sweeps.show.status import short, study_status
from sweeps.study.study import ResourceConfig, Study, read_study

Text = Callable[..., str]


@pytest.fixture
def running(study_text: Text) -> Study:
    """A study of 12 trials: two ok, one failed, one begun."""
    study = read_study(study_text(), "s")
    root = Path(study.root)
    (root / "ray" / "train" / "t00003-x").mkdir(parents=True)
    (root / "ray" / "train" / "t00000-x").mkdir()  # checkpoints not yet removed
    (root / "study.yaml").write_text(study.to_yaml())
    start = datetime.now(UTC) - timedelta(hours=2)
    for i, status in enumerate(("ok", "ok", "failed")):
        row = {"trial": f"t0000{i}-x", "status": status, "finished": start + timedelta(minutes=30 * i)}
        figures = {"train_seconds": 3600.0, "devices": 2, "prune_seconds": 1800.0, "flops": 1e15}
        write_trial_row(study.root, row | (figures if status == "ok" else {}))
    return study


def test_status(running: Study, capsys: pytest.CaptureFixture[str]) -> None:
    found = study_status(running.root)
    assert (found.by_status, found.begun, found.done, found.trials) == ({"ok": 2, "failed": 1}, 1, 3, 12)
    assert found.per_hour == pytest.approx(2)
    assert found.left == timedelta(hours=4.5)
    assert (found.device_hours, found.prune_hours, found.flops) == (4, 1, 2e15)
    assert status_of(["status", running.root, "--price", "3"]) == 0
    said = capsys.readouterr().out
    for words in ("3 of 12 finished (25 %", "2 ok, 1 failed, 1 begun", "2 trials per hour", "4 h 30 min", "12.00 at 3"):
        assert words in said


def test_status_of_a_study_that_has_only_begun(study_text: Text) -> None:
    study = read_study(study_text(), "s")
    Path(study.root).mkdir(parents=True)
    (Path(study.root) / "study.yaml").write_text(study.to_yaml())
    found = study_status(study.root)
    assert (found.done, found.per_hour, found.left, found.last_finished) == (0, None, None, None)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (61, "1 min 1 s"), (3600, "1 h"), (90_061, "1 d 1 h")])
def test_spans(seconds: int, text: str) -> None:
    assert short(timedelta(seconds=seconds)) == text


def test_training_and_pruning_are_counted_apart(study_text: Text, capsys: pytest.CaptureFixture[str]) -> None:
    """An hour on a quarter of a GPU, and two circuits of half an hour each on half a GPU and three cores."""
    resources = {"gpus_per_worker": 0.25, "gpus_per_pruning_task": 0.5, "cpus_per_pruning_task": 3}
    study = read_study(study_text({"resources": resources}), "s")
    assert study.resources.devices == 0.25
    Path(study.root).mkdir(parents=True)
    (Path(study.root) / "study.yaml").write_text(study.to_yaml())
    row = {"trial": "t0", "status": "ok", "train_seconds": 3600.0, "devices": study.resources.devices}
    write_circuit_rows(study.root, "t0", [{"trial": "t0", "task": task, "seconds": 1800.0} for task in "ab"])
    write_trial_row(study.root, row)
    found = study_status(study.root)
    assert (found.device, found.device_hours) == ("GPU", 0.25)
    assert (found.prune_core_hours, found.prune_gpu_hours) == (3, 0.5)
    assert status_of(["status", study.root, "--price", "4"]) == 0
    said = capsys.readouterr().out
    for words in (
        "0.25 GPU hours so far",
        "3 core hours and 0.5 GPU hours",
        "3.00 at 4 per GPU hour: 1.00 of training",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("asked", "devices"),
    [
        ({"gpus_per_worker": 0.25, "cpus_per_worker": 4}, 0.25),
        ({"workers": 3, "gpus_per_worker": 2, "cpus_per_worker": 4}, 6),
        ({"workers": 3, "cpus_per_worker": 4}, 12),
    ],
)
def test_devices_are_what_trains(asked: dict[str, float], devices: float) -> None:
    assert ResourceConfig.model_validate(asked).devices == devices
