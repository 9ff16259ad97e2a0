"""CPU cores that this process may use: fewer than the machine has, under `taskset` or in a container with a limit.

And the memory that it does not give back while it computes.
"""

import ctypes
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """CPU cores that this process may use, 1 at least."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _quota())))


def _quota() -> float:
    """Cores of processor time that the container's limit leaves (cgroup, version 2 or 1); infinite without one."""
    try:
        if (CGROUP / "cpu.max").exists():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup here, or `max`
        return math.inf


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for the next use, where it is glibc; whether it will.

    By itself it gives back all large tensors of a training step to the system, which then has to clear their pages
    anew in the next: 5 % of a step (docs/training.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_MMAP_THRESHOLD, 2**30))
