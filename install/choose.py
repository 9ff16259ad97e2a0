"""Which Python a virtual environment is made with, and how much it downloads.

torch is most of that. On Linux its usual wheel brings libraries for GPUs along, gigabytes of them; an index, a folder
or pip's cache may hold a smaller one, for some Pythons and not for others. pip itself is asked, for each Python found:
it names the wheel and its size before it downloads, and is stopped there. Runs on any Python from 3.8 on.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ((3, 13), (3, 12), (3, 11))
"""The Pythons that are tested, newest first."""
OLDEST_TORCH = (2, 11)
"""As in pyproject.toml: what is installed already and older is not used."""
SMALL = 400
"""MB: a torch below is taken without libraries for GPUs."""
GPU_LIBRARIES, RUN, DEVELOP = 2200, 325, 334
"""MB, on Linux x86_64: what torch 2.13.0 from the usual index asks for besides itself; the rest of requirements.lock;
what requirements-dev.lock adds, triton among it. `make check-locks` prints what they are of."""

QUESTION = """
import json, platform, sys
try:
    import ensurepip, venv
    makes = True
except ImportError:
    makes = False
try:
    from importlib.metadata import version
    torch = version("torch") if sys.prefix == sys.base_prefix else ""
except Exception:
    torch = ""
print(json.dumps([list(sys.version_info[:2]), platform.python_version(), sys.executable, makes, torch]))
"""


class Python(NamedTuple):
    """An interpreter: `torch` is the version installed with it, if any."""

    version: tuple[int, int]
    full: str
    path: str
    makes_venvs: bool
    torch: str

    @property
    def called(self) -> str:
        return f"Python {self.full} ({self.path})"

    @property
    def has_torch(self) -> bool:
        found = re.match(r"(\d+)\.(\d+)", self.torch)
        return found is not None and (int(found[1]), int(found[2])) >= OLDEST_TORCH


class Torch(NamedTuple):
    """What installing torch takes: MB to download; `why` in words; None for a size that is not known."""

    megabytes: float | None
    why: str
    offered: bool = True

    @property
    def small(self) -> bool:
        return self.offered and self.megabytes is not None and self.megabytes <= SMALL


def asked(name: str) -> Python | None:
    """The Python of a name or path; None if there is none that runs."""
    for path in (name, *behind_shim(name)):
        try:
            done = subprocess.run([path, "-c", QUESTION], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
            version, *rest = json.loads(done.stdout.decode())
        except (OSError, ValueError, subprocess.SubprocessError):
            continue
        return Python((version[0], version[1]), *rest)
    return None


def behind_shim(name: str) -> list[str]:
    """What pyenv's name for a Python may stand for: it refuses those that are installed but not made the default."""
    shim = Path(shutil.which(name) or "")
    return (
        sorted(map(str, shim.parent.parent.glob("versions/*/bin/" + shim.name))) if shim.parent.name == "shims" else []
    )


def found() -> tuple[list[Python], list[Python]]:
    """The Pythons in PATH that can be taken, one a version, newest first; and those that cannot."""
    names = ["python{}.{}".format(*version) for version in VERSIONS] + ["python3", "python"]
    fit: dict[tuple[int, int], Python] = {}
    unfit = []
    for name in names:
        python = asked(name) if shutil.which(name) else None
        if python is not None and python.version in VERSIONS and python.makes_venvs:
            fit.setdefault(python.version, python)
        elif python is not None:
            unfit.append(python)
    return sorted(fit.values(), reverse=True), unfit


def pinned_torch() -> str:
    """The requirement of torch in the lock: torch==2.13.0."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def torch_for(python: Python) -> Torch:
    """What torch takes with this Python: nothing where it is installed, else what pip says."""
    if python.has_torch:
        return Torch(0, f"torch {python.torch} is installed with it")
    with tempfile.TemporaryDirectory() as folder:
        command = [python.path, "-m", "pip", "download", "--no-deps", "--progress-bar", "off", "--no-input"]
        command += ["--disable-pip-version-check", "--dest", folder, pinned_torch()]
        pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert pip.stdout is not None
        said = []
        try:
            for line in pip.stdout:
                said.append(line.decode(errors="replace").strip())
                told = read_line(said[-1], sys.platform)
                if told is not None:
                    return told
        finally:
            pip.kill()
            pip.wait()
    return refused(said)


def read_line(line: str, platform: str) -> Torch | None:
    """What a line of `pip download torch` says about the size; None if it is about something else."""
    line = line.rstrip()
    if re.search(r"^Processing .*torch-\S+\.whl$", line):
        return Torch(0, "torch is on this machine")
    match = re.search(r"^(Downloading|Using cached) \S*(torch-\S+\.whl) \(([\d.]+) (kB|MB|GB)\)", line)
    if match is None:
        return None
    size = float(match[3]) * {"kB": 0.001, "MB": 1, "GB": 1000}[match[4]]
    for_gpus = platform == "linux" and "cpu" not in match[2] and size > SMALL
    if match[1] == "Using cached":
        return Torch(GPU_LIBRARIES if for_gpus else 0, "torch is in pip's cache")
    if for_gpus:
        return Torch(size + GPU_LIBRARIES, "torch comes with libraries for GPUs")
    return Torch(size, "torch is small here")


def refused(said: list[str]) -> Torch:
    """What it means that pip ended without a size."""
    errors = [line for line in said if line.startswith("ERROR")]
    if any("No matching distribution" in line or "satisfies the requirement" in line for line in errors):
        return Torch(None, f"there is no {pinned_torch()} for it", offered=False)
    return Torch(None, "pip does not say how large torch is ({})".format(errors[-1] if errors else "no answer"))


def chosen(candidates: list[tuple[Python, Torch]]) -> tuple[Python, Torch]:
    """Of candidates, newest first: the newest whose torch is installed or small, else the newest that has one."""
    for python, torch in candidates:
        if torch.small:
            return python, torch
    return next(((python, torch) for python, torch in candidates if torch.offered), candidates[0])


def spoken(megabytes: float) -> str:
    """120 MB, 2.9 GB."""
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def size_said(torch: Torch, rest: int) -> str:
    """How much is downloaded at most, and why."""
    if torch.megabytes is None:
        return f"{torch.why}; besides torch up to {spoken(rest)} to download"
    return f"{torch.why}; up to {spoken(torch.megabytes + rest)} to download"
