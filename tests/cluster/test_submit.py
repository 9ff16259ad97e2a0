"""`sweeps submit` and `ray job submit` against a real Ray with job submission and token authentication."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cutting_proxy import CuttingProxy

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


FOLLOW = """
import sys
from sweeps.engine.submission import follow_job, job_client, start_job
client = job_client(sys.argv[1])
lines = "for i in range(60): print(f'line {i} é', flush=True); time.sleep(0.25)"
work = "import os, time\\nprint(os.environ['GIVEN'])\\n" + lines
job = start_job(client, f'python -u -c "{work}"', sys.argv[2], {"GIVEN": "to the job"})
print("started", flush=True)
sys.exit(follow_job(client, job, lambda text: print(text, flush=True)))
"""


def test_a_followed_log_survives_every_cut(cluster: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """The line is cut again and again, and gone for a while: every line of the log comes once, in order."""
    address, environment = cluster
    with CuttingProxy(int(address.rsplit(":", 1)[1])) as proxy:
        command = [sys.executable, "-c", FOLLOW, f"http://127.0.0.1:{proxy.port}", str(tmp_path)]
        with subprocess.Popen(
            command, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "started"
            said: list[str] = []
            reader = threading.Thread(target=lambda: said.extend(process.stdout or ()))
            reader.start()
            while process.poll() is None and len(said) < 45:
                time.sleep(1.5)
                proxy.cut()
            proxy.accepts = False
            proxy.cut()
            time.sleep(8)  # the job ends meanwhile
            proxy.accepts = True
            assert process.wait(timeout=120) == 0
            reader.join()
    lines = [line.strip() for line in said]
    assert [line for line in lines if line.startswith("line")] == [f"line {i} é" for i in range(60)]
    assert lines.count("to the job") == 1
    assert lines[-1].endswith("SUCCEEDED")
    assert proxy.cuts > 6
