"""`make check-locks`: do both locks resolve on every Python, and do they pin everything? Prints what they download.

A dry run of pip for each lock and Python: nothing is installed, but pip may have to download packages to read what they
ask for. A Python that is not on this machine is asked for with pip's --python-version, for which every package must
have a wheel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import choose

LOCKS = ("requirements.lock", "requirements-dev.lock")
WITH_TORCH = re.compile(r"(nvidia|cuda)-|(torch|triton)$")
"""What torch's wheels of some kinds bring along, pinned by torch itself, and torch."""


def main() -> int:
    pythons = {python.version: python for python in choose.found()[0]}
    any_python = choose.Python((0, 0), "", sys.executable, True, "")
    good = True
    for version in choose.VERSIONS:
        python = pythons.get(version, any_python)
        for lock in LOCKS:
            good &= check(python, version, lock)
    return 0 if good else 1


def check(python: choose.Python, version: tuple[int, int], lock: str) -> bool:
    """One lock on one Python: whether it resolves to what it pins, with a line that says so."""
    called = "Python {}.{}, {}".format(*version, lock)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [python.path, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-qq", "--no-input"]
        command += ["--disable-pip-version-check", "--report", str(report), "-r", str(choose.ROOT / lock)]
        if python.version != version:
            command += ["--python-version", "{}.{}".format(*version), "--only-binary", ":all:", "--target", folder]
            called += " (seen from another Python)"
        done = subprocess.run(command, capture_output=True)
        if done.returncode:
            print("{}: does not resolve: {}".format(called, " ".join(done.stderr.decode().split())))
            return False
        found = {name(item["metadata"]["name"]): item for item in json.loads(report.read_text())["install"]}
    loose = sorted(package for package in found if package not in pinned(lock) and not WITH_TORCH.match(package))
    if loose:
        print("{}: not pinned: {}".format(called, ", ".join(loose)))
        return False
    print(f"{called}: {len(found)} packages, {sizes(found)}", flush=True)
    return True


def name(package: str) -> str:
    """A package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def pinned(lock: str) -> list[str]:
    """The packages a lock names, with those of the locks that it includes."""
    packages = []
    for line in (choose.ROOT / lock).read_text().splitlines():
        included, pin = re.match(r"-r (\S+)", line), re.match(r"([\w.-]+)==", line)
        if included:
            packages += pinned(included[1])
        elif pin:
            packages.append(name(pin[1]))
    return packages


def sizes(found: dict[str, Any]) -> str:
    """The sizes of what was resolved: torch with what comes with it, and all the rest."""
    with ThreadPoolExecutor(8) as at_once:
        waiting = {package: at_once.submit(size, item["download_info"]["url"]) for package, item in found.items()}
    bytes_each = {package: answer.result() for package, answer in waiting.items()}
    torch = sum(n for package, n in bytes_each.items() if WITH_TORCH.match(package))
    rest = sum(bytes_each.values()) - torch
    return f"{choose.spoken(rest / 1e6)} and torch with {choose.spoken(torch / 1e6)}"


def size(url: str) -> int:
    """Bytes of a wheel on an index or on this machine."""
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as answer:
        return int(answer.headers["Content-Length"])


if __name__ == "__main__":
    sys.exit(main())
