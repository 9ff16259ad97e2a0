"""`sweeps submit` and `ray job submit` against a real Ray with job submission and token authentication."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a head's dashboard and the environment that reaches it; the head ends with the test."""
    folder, gcs, dashboard = tmp_path_factory.mktemp("ray"), free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "test-only", "RAY_TMPDIR": "/tmp"}
    environment |= {"PATH": f"{RAY.parent}:{os.environ['PATH']}", "PYTHONPATH": ""}
    head = subprocess.Popen(
        [RAY, "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=2",
         "--dashboard-host=127.0.0.1", "--disable-usage-stats", "--object-store-memory=200000000"],
        env=environment, stdout=(folder / "log").open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 90
    while subprocess.run([RAY, "job", "list", "--address", address], env=environment, capture_output=True).returncode:
        assert head.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(1)
    yield address, environment
    head.terminate()
    head.wait(timeout=60)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working directory with the project's packages, as a user would upload it, and something that must stay."""
    for package in ("sparse_model", "circuit", "sweeps"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".rayignore", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "big").write_bytes(bytes(200_000_000))  # more than Ray takes: excluded, or the test fails
    return tmp_path


def submit(cluster: tuple[str, dict[str, str]], project: Path, study: str, *more: str) -> tuple[int, str]:
    address, environment = cluster
    command = [sys.executable, "-m", "sweeps", "submit", study, "--address", address, *more]
    done = subprocess.run(
        command, env=environment, cwd=project, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_status_is_that_of_the_study(
    cluster: tuple[str, dict[str, str]], project: Path, study_text: Callable[..., str], tmp_path: Path
) -> None:
    """A study whose storage cannot be written there: sound where it is submitted, refused by the job, exit 2."""
    (project / "s.yaml").write_text(study_text())
    status, said = submit(cluster, project, "s.yaml", "--storage", "/proc/nothing")
    assert "cannot write /proc/nothing" in said
    assert status == 2, said
    assert "FAILED" in said.splitlines()[-1]


def test_a_stopped_job_is_no_success(
    cluster: tuple[str, dict[str, str]], project: Path, study_text: Callable[..., str], tmp_path: Path
) -> None:
    address, environment = cluster
    changes: dict[str, Any] = {"corpus": {"sources": [{"source": "idioms", "megabytes": 60}]}}
    (project / "s.yaml").write_text(study_text(changes))
    shared = tmp_path / "shared"
    command = [sys.executable, "-m", "sweeps", "submit", "s.yaml", "--address", address, "--storage", str(shared)]
    with subprocess.Popen(command, env=environment, cwd=project, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        job = following.stdout.readline().split()[1].rstrip(":")
        for line in following.stdout:
            if "data:" in line or "results in" in line:
                break
        subprocess.run([RAY, "job", "stop", "--no-wait", job, "--address", address], env=environment, check=True)
        said = following.stdout.read()
    assert following.returncode == 1
    assert "STOPPED" in said


def test_without_the_token_nobody_submits(
    cluster: tuple[str, dict[str, str]], project: Path, study_text: Callable[..., str]
) -> None:
    (project / "s.yaml").write_text(study_text())
    address, environment = cluster
    status, said = submit(
        (address, environment | {"RAY_AUTH_TOKEN": "wrong"}), project, "s.yaml", "--storage", "/tmp/x"
    )
    assert status == 2
    assert "address" in said
    assert "Traceback" not in said
