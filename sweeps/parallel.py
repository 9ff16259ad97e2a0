"""A function over jobs in processes of this machine, for commands that need no cluster."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import torch

from sparse_model.data.processes import cpu_count

Job = TypeVar("Job")
Result = TypeVar("Result")


def on_all_cores(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
    """(job, result) in the order in which they end, one process per core; what `work` raises is raised here.

    `work` is a function of a module, or a `partial` of one. The processes are ended where the caller goes no further.
    """
    count = min(cpu_count(), len(jobs))
    if count <= 1:
        yield from ((job, work(job)) for job in jobs)
        return
    with get_context("spawn").Pool(count, _begin) as pool:
        yield from pool.imap_unordered(partial(_done, work), jobs)


def _done(work: Callable[[Job], Result], job: Job) -> tuple[Job, Result]:
    return job, work(job)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is the caller's to handle
    torch.set_num_threads(1)
