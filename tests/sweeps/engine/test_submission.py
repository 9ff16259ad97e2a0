"""Submission without a cluster: the job client is a stand-in with a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from sparse_model.errors import InputError
from sweeps.engine import submission

Text = Callable[..., str]


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
