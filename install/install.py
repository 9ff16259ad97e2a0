"""`make install`: the virtual environment. Chooses a Python, says how much it downloads, installs a lock into it."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import choose


def say(line: str) -> None:
    print("make: " + line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", required=True)
    parser.add_argument("--python", default="", help="a Python to take, instead of the one chosen")
    parser.add_argument("--lock", required=True, help="requirements.lock or requirements-dev.lock")
    options = parser.parse_args()
    venv = Path(options.venv)
    try:
        make_venv(venv, options.python, options.lock)
    except SystemExit as error:
        print(f"make: {error}", file=sys.stderr)
        return 2
    return install(venv, options.lock)


def make_venv(venv: Path, name: str, lock: str) -> None:
    """The virtual environment, made unless it is there; one of another Python than asked for is made anew."""
    rest = choose.RUN + (choose.DEVELOP if "dev" in lock else 0)
    there = choose.asked(str(venv / "bin" / "python"))
    if name:
        python = choose.asked(name)
        if python is None:
            raise SystemExit(f"PYTHON={name}: there is no such Python")
        if python.version not in choose.VERSIONS:
            raise SystemExit(f"PYTHON={name}: {python.full} is not one of {versions()}")
        candidates = [python]
    else:
        candidates = []
    if there is not None and there.version in choose.VERSIONS and (not name or there.version == candidates[0].version):
        say(f"{venv} has Python {there.full}")
        return
    create(venv, candidates, rest)


def create(venv: Path, candidates: list[choose.Python], rest: int) -> None:
    """Make the virtual environment with the best of the candidates, or of what is in PATH."""
    if not candidates:
        candidates, unfit = choose.found()
        if not candidates:
            raise SystemExit(f"no Python to take: {versions()} needed, {why_not(unfit)}")
    sized = [(python, choose.torch_for(python)) for python in candidates]
    python, torch = choose.chosen(sized)
    if not torch.offered:
        raise SystemExit(f"{python.called}: {torch.why}")
    for other, its in sized:
        if other != python:
            verdict = choose.size_said(its, rest) if its.offered else its.why
            say(f"not taken, {other.called}: {verdict} (PYTHON={other.path} takes it)")
    say(f"taken, {python.called}: {choose.size_said(torch, rest)}")
    command = [python.path, "-m", "venv", "--clear", str(venv)]
    if subprocess.call(command + (["--system-site-packages"] if python.has_torch else [])):
        raise SystemExit(f"{python.called} made no virtual environment (on Debian: apt install python3-venv)")


def versions() -> str:
    return "Python " + ", ".join("{}.{}".format(*version) for version in reversed(choose.VERSIONS))


def why_not(unfit: list[choose.Python]) -> str:
    """What was found instead of a Python to take."""
    if not unfit:
        return "none found in PATH"
    python = unfit[0]
    if python.version in choose.VERSIONS:
        return f"{python.called} has no venv (on Debian: apt install python3-venv)"
    return f"found only {python.called}"


def install(venv: Path, lock: str) -> int:
    """Install what a lock names, less the torch that is there already; and this project, as it lies here."""
    python = str(venv / "bin" / "python")
    settings = (venv / "pyvenv.cfg").read_text()
    pins = venv / "pins.txt"
    pins.write_text(pins_of(lock, own_torch="include-system-site-packages = true" not in settings))
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    return subprocess.call([*pip, "-r", str(pins)]) or subprocess.call([*pip, "--no-deps", "-e", "."])


def pins_of(lock: str, own_torch: bool) -> str:
    """The lines of a lock and of those it includes; without torch and what comes with it, where that is installed."""
    lines = []
    for line in (choose.ROOT / lock).read_text().splitlines():
        included = re.match(r"-r (\S+)", line)
        lines += pins_of(included[1], own_torch).splitlines() if included else [line]
    return "\n".join(line for line in lines if own_torch or not re.match(r"(torch|triton)==", line)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
