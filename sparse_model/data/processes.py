"""A function over parts in several processes of this machine.

They run `sparse_model.data.worker`: unlike those of `multiprocessing` they do not import the caller's main module, so
any script or notebook may start them. They end with the caller, even if it is killed (then after the part at hand).
"""

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Protocol

from sparse_model.cores import cpu_count
from sparse_model.data.corpora import Part
from sparse_model.data.parts import PartRecord

Work = Callable[[Part], PartRecord]

DEATHS = 2
"""Of a process over the same part: so many end the work."""


class Execute(Protocol):
    """How parts are worked on: gives the records in any order, and raises what `work` raises."""

    def __call__(self, work: Work, parts: Sequence[Part]) -> Iterator[PartRecord]: ...


def in_turn(work: Work, parts: Sequence[Part]) -> Iterator[PartRecord]:
    """One part after the other, in this process."""
    return map(work, parts)


def in_processes(workers: int | None = None) -> Execute:
    """Parts in `workers` processes at a time, by default one per CPU core. A process that is killed is replaced.

    Raises RuntimeError if several die over the same part, and whatever `work` raises: InputError as it is, all else as
    RuntimeError with the traceback.
    """
    wanted = workers or cpu_count()

    def execute(work: Work, parts: Sequence[Part]) -> Iterator[PartRecord]:
        count = min(wanted, len(parts))
        return in_turn(work, parts) if count <= 1 else _in_processes(work, parts, count)

    return execute


class _Worker:
    """A process and the part it works on."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TOKENIZERS_PARALLELISM": "false"}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sparse_model.data.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt at the terminal is the caller's to handle
            )
        self.part: Part | None = None

    def send(self, thing: Work | Part) -> None:
        self.part = thing if isinstance(thing, Part) else None
        with suppress(ConnectionError):  # it has died, which is found where its result is waited for
            self.connection.send(thing)

    def result(self) -> PartRecord:
        result = self.connection.recv()
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, PartRecord)
        return result

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _in_processes(work: Work, parts: Sequence[Part], count: int) -> Iterator[PartRecord]:
    waiting, deaths = list(reversed(parts)), Counter[int]()
    workers: dict[object, _Worker] = {}
    try:
        while waiting or workers:
            new = [_Worker() for _ in range(min(count - len(workers), len(waiting)))]
            workers |= {worker.connection: worker for worker in new}
            for worker in new:
                worker.send(work)
                worker.send(waiting.pop())
            for ready in wait([worker.connection for worker in workers.values()]):
                worker = workers[ready]
                assert worker.part is not None
                try:
                    result = worker.result()
                except (EOFError, ConnectionError):
                    workers.pop(ready).end()
                    waiting.append(_given_back(worker.part, deaths))
                    continue
                if waiting:
                    worker.send(waiting.pop())
                else:
                    workers.pop(ready).end()
                yield result
    finally:
        for worker in workers.values():
            worker.end()


def _given_back(part: Part, deaths: Counter[int]) -> Part:
    deaths[part.index] += 1
    if deaths[part.index] == DEATHS:
        raise RuntimeError(f"a process died {DEATHS} times over part {part.index} of the corpus: out of memory?")
    return part
