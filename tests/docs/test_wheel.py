"""The wheel: whole, and of use in an empty folder that knows nothing of this one."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("sparse_model", "circuit", "sweeps")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `python -m build` does, with the setuptools that is here."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("circuit_sweeps-*-py3-none-any.whl")
    return found


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in name}
    assert held == set(tracked.stdout.split())


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_it_runs_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """A study, its report, and the version, by what was installed and not by the files here."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, timeout=120)
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    program = str(site / "bin" / "sweeps")
    assert run(sys.executable, "-c", "import sweeps; print(sweeps.__file__)").startswith(str(site))
    assert run(program, "--version").startswith("circuit-sweeps ")
    run(program, "run", "smoke")
    assert "report: results/smoke/report/index.html" in run(program, "report", "results/smoke")
    assert "t0000" in run(
        sys.executable, "-c", "from sweeps import Frontier; print(Frontier('results/smoke').trials())"
    )
