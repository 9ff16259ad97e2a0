"""Submission without a cluster: the job client is a stand-in with a script."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from ray._private.runtime_env import packaging
from ray.job_submission import JobStatus

from sparse_model.errors import InputError
from sweeps.engine import submission, upload
from sweeps.study.study import load_study

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
    command = submission.entrypoint(path, "s3://b/a path", str(tmp_path), ["--retry-failed", "--prune-again"])
    assert (
        command == "python -m sweeps run s.yaml --address auto --storage 's3://b/a path' --retry-failed --prune-again"
    )
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


def test_a_log_that_begins_anew_is_shown_once_and_by_whole_lines() -> None:
    whole = "one\ntwo\nthree é\nlast"
    for cut in range(len(whole)):
        said: list[str] = []
        log = submission.JobLog(said.append)
        for parts in ([whole[:cut]], [whole[:1], whole[1 : cut // 2]], [whole[i : i + 3] for i in range(0, 20, 3)]):
            log.begin()
            for part in parts:
                log.take(part)
        assert "last" not in said
        log.end()
        assert "\n".join(said) == whole


def project(tmp_path: Path, study_text: Text, **changes: Any) -> Path:
    """A folder to upload, its study in it."""
    for name, content in {
        "tasks/own.jsonl": '{"prompt_a": "(x", "answer_a": ")", "prompt_b": "[x", "answer_b": "]"}\n' * 2,
        "secret/own.jsonl": '{"prompt_a": "(x", "answer_a": ")", "prompt_b": "[x", "answer_b": "]"}\n' * 2,
        "text/a.txt": "words",
        ".env": "SECRET=1",
        "deep/.env.local": "SECRET=1",
        ".gitignore": "secret/\n*.log\n",
        "code.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    study = tmp_path / "s.yaml"
    study.write_text(study_text({"storage": "s3://bucket/x"} | changes))
    return study


def test_what_travels_is_what_ray_uploads_and_never_a_secret(study_text: Text, tmp_path: Path) -> None:
    project(tmp_path, study_text)
    names = {str(path.relative_to(tmp_path)) for path in upload.travelling(str(tmp_path))}
    assert names == {"s.yaml", "code.py", "tasks/own.jsonl", "text/a.txt", ".gitignore"}
    uri = packaging.get_uri_for_directory(str(tmp_path), True, excludes=list(upload.KEEP_OUT))
    package = tmp_path.parent / f"{tmp_path.name}.zip"
    packaging.create_package(str(tmp_path), package, True, excludes=list(upload.KEEP_OUT))
    with zipfile.ZipFile(package) as zipped:
        uploaded = {name for name in zipped.namelist() if not name.endswith("/")}
    assert uploaded == names, uri


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"tasks": ["else_elif", "tasks/own.jsonl"]}, ""),
        ({"tasks": ["secret/own.jsonl"]}, r"tasks\[0\]: secret/own.jsonl: is not uploaded: a .gitignore or .rayignore"),
        ({"tasks": ["{here}/tasks/own.jsonl"]}, r"tasks\[0\]: .*: is a place on this machine"),
        ({"corpus.sources": [{"source": "text/*.txt"}]}, ""),
        ({"corpus.sources": [{"source": "text"}]}, ""),
        ({"corpus.sources": [{"source": "nowhere"}]}, r"corpus.sources\[0\].source: nowhere: is not below"),
        ({"corpus.sources": [{"source": "/data/x"}], "storage": "/data/results"}, "is a place on this machine"),
        ({"corpus.sources": [{"source": "/data/x"}], "storage": "/data"}, ""),
        ({"search.warm_start": ["results/earlier"]}, r"search.warm_start\[0\]: results/earlier: is not below"),
        ({"search.warm_start": ["s3://bucket/earlier"]}, ""),
    ],
)
def test_files_that_workers_would_not_have_are_refused(
    study_text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], refusal: str
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {
        name: [text.format(here=tmp_path) if isinstance(text, str) else text for text in value]
        if isinstance(value, list)
        else value
        for name, value in changes.items()
    }
    path = str(project(tmp_path, study_text, **changes))
    asked = load_study(path)
    if not refusal:
        return upload.check_travels(path, asked, str(tmp_path))
    with pytest.raises(InputError, match=refusal):
        upload.check_travels(path, asked, str(tmp_path))
    return None


def test_a_study_in_a_folder_that_is_not_uploaded_is_refused(study_text: Text, tmp_path: Path) -> None:
    project(tmp_path, study_text)
    for folder, why in (("secret", "a .gitignore"), ("results", "never are")):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "s.yaml"
        path.write_text(study_text({"storage": "s3://bucket/x"}))
        with pytest.raises(InputError, match=f"is not uploaded: .*{why}"):
            upload.check_travels(str(path), load_study(str(path)), str(tmp_path))


def test_environment_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "x=y")
    assert upload.job_environment(["A=1=2", "HERE", "EMPTY="]) == {"A": "1=2", "HERE": "x=y", "EMPTY": ""}
    for wrong in ("NOWHERE_SET", "not a name=1", "=1"):
        with pytest.raises(InputError, match="--env"):
            upload.job_environment([wrong])
    client = Client([""], JobStatus.SUCCEEDED)
    submission.start_job(client, "x", ".", {"A": "1"})
    assert client.submitted["runtime_env"]["env_vars"] == {"A": "1"}


def test_a_lost_answer_to_a_submission_starts_no_second_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "JOB_POLL_SECONDS", 0)
    asked: list[str] = []

    def submit_job(submission_id: str, **options: Any) -> str:
        asked.append(submission_id)
        if len(asked) == 1:
            raise requests.exceptions.ReadTimeout("the answer got lost")
        raise RuntimeError(f"Job with submission_id {submission_id} already exists")

    job = submission.start_job(SimpleNamespace(submit_job=submit_job), "x", ".")
    assert asked == [job, job]
