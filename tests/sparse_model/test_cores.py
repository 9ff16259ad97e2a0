"""Cores that this process may use, with `taskset` itself and a container's files planted."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_model import cores
from sparse_model.cores import cpu_count


def test_taskset_leaves_one_core() -> None:
    first = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", first, sys.executable, "-c", "from sparse_model.cores import *; print(cpu_count())"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu.max": "no numbers"}, 64),
        ({}, 64),
    ],
)
def test_a_containers_limit_counts(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert cpu_count() == expected


FAULTS = """
import resource
from sparse_model.cores import keep_freed_memory
assert not {keep} or keep_freed_memory()
for i in range(8):
    blocks = [bytearray(2**26) for _ in range(2)]  # above any size that glibc may come to keep by itself
    if i == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_freed_memory_is_used_again_without_the_system():
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (False, True)
    )
    assert kept < given_back / 10
