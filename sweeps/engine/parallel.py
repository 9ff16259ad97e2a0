"""A function over jobs in processes of this machine, for commands that need no cluster."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from typing import TypeVar

import torch

from sparse_model.cores import cpu_count

Job = TypeVar("Job")
Result = TypeVar("Result")


def on_all_cores(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
    """(job, result) in the order in which they end, one process per core; what `work` raises is raised here.

    `work` is a function of a module, or a `partial` of one. A process that is killed is an error, not a wait for ever.
    The processes are ended at once where the caller goes no further.
    """
    count = min(cpu_count(), len(jobs))
    if count <= 1:
        yield from ((job, work(job)) for job in jobs)
        return
    others = set(active_children())
    executor = ProcessPoolExecutor(count, get_context("spawn"), _begin)
    try:
        futures = {executor.submit(work, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(active_children()) - others:
            process.terminate()


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is the caller's to handle
    torch.set_num_threads(1)
