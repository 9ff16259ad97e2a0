"""How the virtual environment is made: which Python is taken, what is said about downloads, what the locks hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "install"))
import choose
import locks

import install as installing


@pytest.mark.parametrize(
    ("line", "platform", "megabytes"),
    [
        ("Processing /opt/wheels/torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", "linux", 0),
        ("Downloading torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl (526.6 MB)", "linux", 526.6 + 2200),
        ("Downloading https://h/p/torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl (0.6 GB)", "linux", 600 + 2200),
        ("Downloading torch-2.13.0+cpu-cp313-cp313-manylinux_2_28_x86_64.whl (191.3 MB)", "linux", 191.3),
        ("Downloading torch-2.13.0-cp312-cp312-macosx_14_0_arm64.whl (111.2 MB)", "darwin", 111.2),
        ("Using cached torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl (526.6 MB)", "linux", 2200),
        ("Using cached torch-2.13.0-cp312-none-macosx_11_0_arm64.whl (80.1 MB)", "darwin", 0),
        ("Downloading torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl.metadata (29 kB)", "linux", None),
        ("Collecting torch==2.13.0", "linux", None),
    ],
)
def test_what_pip_says_about_torch(line: str, platform: str, megabytes: float | None) -> None:
    told = choose.read_line(line, platform)
    assert (told and told.megabytes) == (pytest.approx(megabytes) if megabytes is not None else None)


def test_which_python_is_taken() -> None:
    new, mid, old = (choose.Python((3, n), f"3.{n}.0", f"/p{n}", True, "") for n in (13, 12, 11))
    large, small, none = choose.Torch(2700, ""), choose.Torch(190, ""), choose.Torch(None, "", offered=False)
    unknown = choose.Torch(None, "pip does not say")

    def taken(*torches: choose.Torch) -> choose.Python:
        return choose.chosen(list(zip((new, mid, old), torches, strict=True)))[0]

    assert taken(small, small, small) == new
    assert taken(large, small, small) == mid
    assert taken(large, large, choose.Torch(0, "")) == old
    assert taken(large, large, large) == new
    assert taken(none, large, large) == mid
    assert taken(unknown, large, small) == old


def test_a_python_with_torch_is_one_of_a_release_that_is_read() -> None:
    def python(torch: str) -> choose.Python:
        return choose.Python((3, 12), "3.12.0", "/p", True, torch)

    assert [python(version).has_torch for version in ("2.11.0", "2.13.0+cu130", "3.0", "2.9.1", "")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert choose.torch_for(python("2.13.0+cu130")).small
    (floor,) = (d for d in project()["dependencies"] if d.startswith("torch"))
    assert floor == "torch>={}.{}".format(*choose.OLDEST_TORCH)


def test_pip_is_asked_and_nothing_is_installed() -> None:
    """The real pip of this Python, with nothing to fetch from: it says so, and so do we."""
    here = choose.asked(sys.executable)
    assert here is not None
    assert here.version == sys.version_info[:2]
    environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    before = dict(os.environ)
    try:
        os.environ.update(environment)
        told = choose.torch_for(here._replace(torch=""))
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert not told.offered
    assert told.why == f"there is no {choose.pinned_torch()} for it"


def test_names_that_stand_for_no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shims, real = tmp_path / "shims", tmp_path / "versions" / "3.12.1" / "bin"
    shims.mkdir()
    real.mkdir(parents=True)
    (shims / "python3.12").write_text("#!/bin/sh\nexit 127\n")
    (shims / "python3.12").chmod(0o755)
    monkeypatch.setenv("PATH", f"{shims}:{os.environ['PATH']}")
    assert choose.asked("python3.12") is None
    assert choose.asked("python3.99") is None
    (real / "python3.12").symlink_to(Path(sys.executable).resolve())
    behind = choose.asked("python3.12")
    assert behind is not None
    assert behind.version == sys.version_info[:2]


@pytest.mark.parametrize(
    ("python", "words"),
    [("python3.99", "PYTHON=python3.99: there is no such Python"), ("{old}", "is not one of Python 3.11, 3.12, 3.13")],
)
def test_a_python_that_cannot_be_taken_is_one_line(python: str, words: str, tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\necho \'[[3, 8], "3.8.0", "/p", true, ""]\'\n')
    old.chmod(0o755)
    command = [sys.executable, "install/install.py", "--venv", str(tmp_path / "v"), "--lock", "requirements.lock"]
    command += ["--python", python.format(old=old)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("make: ")
    assert words in line
    assert not (tmp_path / "v").exists()


def test_torch_that_is_there_is_not_installed_again() -> None:
    own, without = (installing.pins_of("requirements-dev.lock", own_torch=own).splitlines() for own in (True, False))
    assert {line.split("==")[0] for line in set(own) - set(without)} == {"torch", "triton"}
    assert not [line for line in own if line.startswith("-r")]


def project() -> dict[str, list[str]]:
    found: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def closure(requirements: list[str]) -> set[str]:
    """Every package that these ask for, by what is installed here."""
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(r), extra) for r in requirements for extra in ("", *Requirement(r).extras)]
    while todo:
        requirement, extra = todo.pop()
        if (key := (canonicalize_name(requirement.name), extra)) in seen:
            continue
        seen.add(key)
        for text in metadata.requires(requirement.name) or []:
            inner = Requirement(text)
            if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                todo += [(inner, e) for e in ("", *inner.extras)]
    return {name for name, _ in seen}


def test_one_lock_is_for_running_and_holds_no_more() -> None:
    own = {line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")}
    assert all(re.match(r"[\w.-]+==\S+", line) for line in own)
    asked = {package for package in closure(project()["dependencies"]) if not locks.WITH_TORCH.match(package)}
    assert {package for package in locks.pinned("requirements.lock") if package != "torch"} == asked


def test_the_other_adds_what_developing_takes() -> None:
    everything, run = (set(locks.pinned(lock)) for lock in ("requirements-dev.lock", "requirements.lock"))
    assert run < everything
    dev = {canonicalize_name(Requirement(d).name) for d in tomllib.loads((ROOT / "pyproject.toml").read_text())[
        "project"]["optional-dependencies"]["dev"]}  # fmt: skip
    assert dev <= everything
    assert not {"playwright", "moto", "mypy", "ruff", "pytest", "import-linter", "tensorboard", "mlflow", "wandb"} & run
