"""Whole studies on a real Ray: interrupted and killed ones end with the rows of an undisturbed one; so on S3."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
import yaml

from circuit.graph.record import Circuit
from circuit.tasks import source_name
from sparse_model import storage
from sparse_model.saved.pretrained import from_pretrained
from sweeps.frontier.queries import Frontier
from sweeps.study.study import load_study, study_text

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

CLOCK = {"train_seconds", "prune_seconds", "seconds", "finished"}
"""Columns that no two runs share."""


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """A test that fails half-way leaves no study behind; Ray's processes end with their driver."""
    yield
    while STARTED:
        if (process := STARTED.pop()).poll() is None:
            process.kill()


def start(study: str, root: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """`sweeps run` in a process group of its own, as a shell in the log's folder would start it."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "sweeps", "run", study, "--storage", root],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
            cwd=log.parent,
        )
    STARTED.append(process)
    return process


def finish(study: str, root: str, log: Path, **environment: str) -> str:
    """Run to the end; what was printed."""
    status = start(study, root, log, **environment).wait(timeout=600)
    assert status == 0, log.read_text()
    return log.read_text()


def stop_when(words: str, process: subprocess.Popen[bytes], log: Path, kind: signal.Signals) -> int:
    """Send a signal as soon as something was printed, to the whole process group as a terminal does; the status."""
    deadline = time.monotonic() + 300
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    os.killpg(process.pid, kind)
    return process.wait(timeout=60)


def rows(root: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Trials and circuits without what the clock decides."""
    found = Frontier(root)
    tables = found.trials().to_pylist(), found.circuits().to_pylist()
    trials, circuits = ([{k: v for k, v in row.items() if k not in CLOCK} for row in table] for table in tables)
    return trials, circuits


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The smoke study, run in one go: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    said = finish("smoke", "results", folder / "log")
    return folder / "results" / "smoke", said


def test_smoke_leaves_everything_it_promises(undisturbed: tuple[Path, str]) -> None:
    folder, said = undisturbed
    study, found = load_study("smoke"), Frontier(str(folder))
    trials = found.trials().to_pylist()
    assert len(trials) == study.search.trials
    assert {row["kind"] for row in trials} == {"sparse", "dense"}
    assert {row["status"] for row in trials} == {"ok"}
    circuits = sum(len(study.pruning.methods(source_name(source))) for source in study.task_sources)
    assert found.circuits().num_rows == len(trials) * circuits
    assert found.pareto().num_rows >= 1, "no trial solves a task: the study is too small to test anything"
    for row in trials:
        assert row["trial"] in said
        model, _ = from_pretrained(str(folder / "models" / row["trial"]))
        assert model.config.d_model == row["d_model"]
        for task in study.task_sources:
            assert Circuit.load(str(folder / "circuits" / row["trial"] / f"{task}.json")).task == task
    curves = found.curves().to_pylist()
    steps = [point["step"] for point in curves if point["trial"] == trials[0]["trial"]]
    assert steps == sorted(set(steps))
    assert {point["trial"] for point in curves} == {row["trial"] for row in trials}
    assert "report/index.html" in said
    drawn = {path.parent.name for path in (folder / "report" / "circuits").glob("*/*.html")}
    assert drawn
    assert drawn <= set(found.pareto()["trial"].to_pylist())
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((folder / "study.yaml").read_text())["name"] == "smoke"
    assert str(folder / "frontier.png") in said
    assert "Frontier of smoke" in said


def test_output_is_plain_and_ours(undisturbed: tuple[Path, str]) -> None:
    _, said = undisturbed
    assert "\x1b" not in said, "escape codes in a file"
    foreign = ("raylet", "WARNING", "Traceback", "Last result")
    assert not [line for line in said.splitlines() if any(words in line for words in foreign)]
    for words in ("data: tokens", "started: dense", "training: ", "pruning: ", "(3/3)"):
        assert words in said


def test_interrupted_and_killed_is_the_same_in_the_end(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    root, log = str(tmp_path), tmp_path / "log"
    assert stop_when("training: ", start("smoke", root, log), log, signal.SIGINT) == 130
    assert "the same command goes on" in log.read_text().splitlines()[-1]
    assert stop_when(" ok: ", start("smoke", root, log), log, signal.SIGKILL) == -signal.SIGKILL
    before = [path.stem for path in (tmp_path / "smoke" / "frontier" / "trials").glob("*.parquet")]
    assert before
    said = finish("smoke", root, log)
    assert "trials are finished already" in said
    assert not any(f"{trial} started" in said for trial in before), "a finished trial was repeated"
    assert rows(str(tmp_path / "smoke")) == rows(str(undisturbed[0]))
    again = finish("smoke", root, log)
    assert "3 of 3 trials are finished already" in again
    assert "started" not in again


def test_models_of_another_study_give_its_rows_and_are_not_trained_again(
    undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = undisturbed
    study = yaml.safe_load(study_text("smoke")) | {"name": "again", "models_from": ["smoke"], "report": "none"}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(study))
    said = finish("again.yaml", str(folder.parent), tmp_path / "log")
    assert "training: " not in said
    assert said.count(f"not trained again: a copy of {folder}/models/") == 3
    named = [[row | {"study": "smoke"} for row in table] for table in rows(str(folder.parent / "again"))]
    assert named == list(rows(str(folder)))


SHARDED = {
    "search.trials": 1,
    "search.try_first": [{"kind": "sparse"}],
    "resources": {"workers": 2, "parallel": "fsdp", "concurrency": 1},
    "tasks": ["else_elif"],
    "pruning": {"pairs": 4},
}


def training_workers(mark: str) -> set[int]:
    """Ids of the processes that train for the study whose environment bears the mark."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if b"RayTrainWorker" in (process / "cmdline").read_bytes():
                found |= {int(process.name)} if mark.encode() in (process / "environ").read_bytes() else set()
    return found


def checkpoints_till(step: int, root: Path, process: subprocess.Popen[bytes], log: Path) -> list[Path]:
    """Complete checkpoints of the only trial seen from now till there is one of that step or later, by their names."""
    deadline = time.monotonic() + 300
    seen: set[Path] = set()
    while not seen or max(seen).name < f"step-{step:08d}":
        seen |= {path.parent for path in root.glob("ray/train/*/checkpoints-*/step-*/manifest.json")}
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    return sorted(seen)


def test_a_killed_worker_and_a_damaged_checkpoint_change_nothing(
    study_text: Callable[..., str], tmp_path: Path
) -> None:
    path, log = tmp_path / "tiny.yaml", tmp_path / "log"
    path.write_text(study_text(SHARDED | {"trial.training.tokens": 600_000, "trial.training.checkpoint_every": 20}))
    finish(str(path), str(tmp_path / "whole"), log)
    root, mark = tmp_path / "broken" / "tiny", uuid4().hex
    process = start(str(path), str(tmp_path / "broken"), log, MARK_OF_THIS_TEST=mark)
    before = checkpoints_till(60, root, process, log)
    workers = training_workers(mark)
    assert len(workers) == 2
    os.kill(max(workers), signal.SIGKILL)
    seen = checkpoints_till(200, root, process, log)
    assert workers.isdisjoint(training_workers(mark)), "no other workers have taken over"
    assert min(set(seen) - set(before)) > before[-1], "training began anew instead of at the last checkpoint"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while training_workers(mark):  # they end a moment after their driver
        time.sleep(0.1)
    part = max(root.glob("ray/train/*/checkpoints-*/step-*/manifest.json")).parent / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-10])
    said = finish(str(path), str(tmp_path / "broken"), log)
    assert "cannot be read (__1_0.distcp is damaged); trying the one before" in said
    assert rows(str(root)) == rows(str(tmp_path / "whole" / "tiny"))


def test_object_storage_and_two_workers(
    study_text: Callable[..., str], s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial sharded over two workers, every byte of it on an S3 server; its task is too hard to solve."""
    access = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    bucket = f"b-{uuid4().hex}"
    boto3.client("s3", endpoint_url=s3_server, aws_access_key_id="testing", aws_secret_access_key="testing",
                 region_name="us-east-1").create_bucket(Bucket=bucket)  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(study_text(SHARDED | {"trial.training.checkpoint_every": 5}))
    root = f"s3://{bucket}/here?endpoint_override={s3_server}"
    said = finish(str(path), root, tmp_path / "log", **access)
    for name, value in access.items():
        monkeypatch.setenv(name, value)
    (row,) = Frontier(storage.join(root, "tiny")).trials().to_pylist()
    assert row["status"] == "ok", row["reason"]
    assert row["trial"] in said
    assert from_pretrained(storage.join(root, "tiny", "models", row["trial"]))[0].config.d_model == row["d_model"]
    assert storage.read_bytes(storage.join(root, "tiny", "frontier.png")).startswith(b"\x89PNG")
    assert not list(tmp_path.glob("s3*")), "a URI was taken for a folder"
