"""Planning, status and submission, without a cluster: the job client is a stand-in with a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer
from sparse_model.training.measures import flops_per_token
from sweeps.cli import status_of
from sweeps.engine import submission
from sweeps.frontier.rows import write_circuit_rows, write_trial_row
from sweeps.show.planning import assumed, measured, parameters, plan, sample
from sweeps.show.status import short, study_status
from sweeps.study.study import Study, read_study

Text = Callable[..., str]


def test_plan_by_hand(study_text: Text) -> None:
    """A study without choices, worked out by hand."""
    changes = {"trial.kind": "dense", "trial.model.d_model": 32, "trial.training.lr": 0.01, "search.trials": 6}
    changes |= {"seeds": [0, 1], "resources": {"workers": 2, "cpus_per_worker": 2, "concurrency": 3}}
    study = read_study(study_text(changes), "s")
    found = plan(study, assumed(study, 1e9, 10.0))
    (config, *_) = sample(study)
    size = sum(p.numel() for p in SparseTransformer(config.model).parameters())
    assert parameters(config.model) == size
    assert found.parameters == (size, size)
    assert found.trials == 12
    assert found.tokens == 12 * 20_000
    assert found.flops == pytest.approx(12 * 20_000 * flops_per_token(config.model))
    assert found.device_hours == pytest.approx(found.flops / 1e9 / 3600)
    assert found.prune_core_hours == pytest.approx(2 * 12 * 2 * 10 / 3600)  # by node and by edge
    # three trials at a time, each on 2 x 2 cores, which prune four circuits at a time
    assert found.hours == pytest.approx(found.device_hours / 12 + 2 * 24 * 10 / 3600 / 12)


def test_a_plan_names_the_gpus_that_searches_share(study_text: Text, tmp_path: Path, capsys: Any) -> None:
    shared = {"cpus_per_worker": 4, "gpus_per_pruning_task": 0.25, "concurrency": 2}
    (tmp_path / "s.yaml").write_text(study_text({"resources": shared}))
    assert status_of(["plan", str(tmp_path / "s.yaml")]) == 0
    assert "8 cores and 2 GPUs for pruning" in " ".join(capsys.readouterr().out.split())


def test_plan_like_a_finished_study(study_text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, (flops, seconds) in enumerate(((1e12, 10.0), (3e12, 30.0))):
        row = {"trial": f"t{i}", "status": "ok", "flops": flops, "train_seconds": seconds, "devices": 2}
        write_trial_row(str(tmp_path / "done"), row)
        write_circuit_rows(str(tmp_path / "done"), f"t{i}", [{"trial": f"t{i}", "seconds": 3.0 + i}])
    speed = measured(str(tmp_path / "done"))
    assert (speed.flops, speed.prune_seconds) == (pytest.approx(5e10), pytest.approx(3.5))
    path = tmp_path / "s.yaml"
    path.write_text(study_text())
    assert status_of(["plan", str(path), "--like", str(tmp_path / "done"), "--price", "2", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["throughput"]["flops"] == pytest.approx(5e10)
    assert status_of(["plan", str(path), "--price", "2"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("trials: 12", "FLOPs", "core hours", "wall clock", "cluster", "GB", "cost"))
    assert not (tmp_path / "results").exists(), "planning writes nothing"


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


class Client:
    """A job whose log grows and which ends as told."""

    def __init__(self, logs: list[Any], end: JobStatus, code: int | None = None) -> None:
        self.logs, self.end, self.code = logs, end, code
        self.submitted: dict[str, Any] = {}
        self.not_yet = 0

    def submit_job(self, **options: Any) -> str:
        if self.not_yet:
            self.not_yet -= 1
            raise RuntimeError("Request failed with status code 500: No available agent to submit job")
        self.submitted = options
        return "raysubmit_x"

    def get_job_logs(self, job: str) -> str:
        if isinstance(self.logs[0], Exception):
            raise self.logs.pop(0)
        return str(self.logs[0])

    def get_job_info(self, job: str) -> Any:
        status = JobStatus.RUNNING if len(self.logs) > 1 else self.end
        if len(self.logs) > 1:
            self.logs.pop(0)
        return SimpleNamespace(status=status, message="said\nso", driver_exit_code=self.code)


@pytest.mark.parametrize(
    ("end", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 130, 130),
        (JobStatus.FAILED, None, 1),
        (JobStatus.FAILED, 0, 1),
        (JobStatus.STOPPED, 0, 1),
        (JobStatus.STOPPED, None, 1),
    ],
)
def test_the_exit_status_is_the_jobs(
    monkeypatch: pytest.MonkeyPatch, end: JobStatus, code: int | None, expected: int
) -> None:
    monkeypatch.setattr(submission, "JOB_POLL_SECONDS", 0)
    said: list[str] = []
    logs = ["", "one\nhalf a l", ConnectionError("away"), "one\nhalf a line\n", "one\nhalf a line\nlast"]
    assert submission.follow_job(Client(logs, end, code), "j", said.append) == expected
    assert "\n".join(said[:-1]).splitlines() == ["one", "half a line", "last"]
    assert end.value in said[-1]


def test_a_cluster_that_is_gone_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "JOB_POLL_SECONDS", 0)
    monkeypatch.setattr(submission, "LONGEST_OUTAGE", 0)
    said: list[str] = []
    client = Client([ConnectionError("away")] * 3, JobStatus.SUCCEEDED)
    assert submission.follow_job(client, "j", said.append) == 1
    assert "may still be running" in said[-1]


def test_what_is_submitted(study_text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "JOB_POLL_SECONDS", 0)
    (tmp_path / "s.yaml").write_text(study_text({"storage": "s3://bucket/x"}))
    path = str(tmp_path / "s.yaml")
    command = submission.entrypoint(path, "s3://b/a path", str(tmp_path), retry_failed=True)
    assert command == "python -m sweeps run s.yaml --address auto --storage 's3://b/a path' --retry-failed"
    assert submission.entrypoint("smoke", None, ".") == "python -m sweeps run smoke --address auto"
    with pytest.raises(InputError, match="is not below the working directory"):
        submission.entrypoint(path, None, str(tmp_path / "elsewhere"))
    client = Client([""], JobStatus.SUCCEEDED)
    client.not_yet = 2  # the cluster has only just started
    submission.start_job(client, command, str(tmp_path))
    assert client.submitted["entrypoint"] == command
    assert {"results", ".venv"} <= set(client.submitted["runtime_env"]["excludes"])
    assert not {key for key in client.submitted if key.startswith("entrypoint_num")}, "the driver stays on the head"


def test_a_folder_of_this_machine_is_no_storage_for_a_cluster() -> None:
    with pytest.raises(InputError, match="nodes of a cluster share no local folder"):
        submission.check_shared("smoke", None)
    with pytest.raises(InputError, match="storage results: nodes"):
        submission.check_shared("smoke", "results")  # would lie in the folder in which a cluster unpacks the upload
    assert submission.check_shared("smoke", "s3://bucket/x").storage == "s3://bucket/x"
    assert submission.check_shared("smoke", "/mnt/shared").storage == "/mnt/shared"


def test_the_study_of_the_scale_plan_is_sound_and_costs_what_the_plan_says() -> None:
    root = Path(__file__).parents[2]
    study = read_study((root / "deploy" / "paper.yaml").read_text(), "paper")
    found = plan(study, assumed(study, 1e14, 1200.0))
    text = (root / "docs" / "scale.md").read_text()
    assert f"{found.trials} models" in text
    assert f"{found.device_hours:,.0f} GPU hours" in text
    assert f"{found.prune_core_hours:,.0f} core hours" in text
