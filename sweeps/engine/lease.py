"""One driver per study: a small file in the study's storage says who runs it, rewritten for as long as it does.

The file is `driver/<number>.json`; whoever creates the next number holds the study, and the store lets one create it.
Clocks of two machines are never compared. A driver counts as dead when its process is gone from this machine, or when
its file was not rewritten while another driver watched it for `EXPIRY` seconds. A driver that was taken for dead
wrongly (a laptop that slept) finds the higher number at its next beat and stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sparse_model import storage
from sparse_model.errors import InputError

BEAT, EXPIRY, GLANCE = 10.0, 45.0, 2.0
"""Seconds between two writes of a living driver; without one after which it is dead; between two looks at it."""

Say = Callable[[str], None]


class StudyTaken(RuntimeError):
    """Another driver has taken this driver for dead and goes on with the study."""


@dataclass(frozen=True)
class Driver:
    """Who runs a study. `machine` and `began` tell a process from one of the same number elsewhere, or later."""

    mark: str
    host: str
    machine: str
    pid: int
    began: str
    since: str
    beats: int = 0
    ended: bool = False

    @classmethod
    def of_this_process(cls) -> Driver:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), os.getpid(), _began(os.getpid()), since)

    @classmethod
    def read(cls, content: bytes) -> Driver | None:
        """The driver in a file's content; None for anything else, such as a file that is being written."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, where this process can see it."""
        return self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Whether a driver of this machine has ended."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's process
            pass
        return _began(self.pid) != self.began

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}, since {self.since}"


class Lease:
    """The right to run a study, from `holding_lease`."""

    def __init__(self, folder: str, number: int) -> None:
        self.folder, self.number = folder, number
        self.driver = Driver.of_this_process()
        self._uri = storage.join(folder, f"{number:06d}.json")
        self._taken = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def check(self) -> None:
        """Raise StudyTaken if another driver goes on with the study."""
        if self._taken:
            raise StudyTaken("another driver took this one for dead and goes on with the study")

    def create(self) -> bool:
        """Whether the lease is ours: our file is there, and it is the first of its number."""
        storage.create(self._uri, self.driver.to_json())
        # A write may succeed without an answer, and a store that knows no exclusive writes keeps the last one.
        return self._is_ours()

    def beat(self) -> None:
        """Show that we live, unless the lease is another's by now."""
        if _numbers(self.folder)[-1:] != [self.number] or not self._is_ours():
            self._taken = True
            return
        self.driver = replace(self.driver, beats=self.driver.beats + 1)
        storage.write_bytes_atomic(self._uri, self.driver.to_json())

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Let the next driver in at once. Where the store does not let us, it finds us gone."""
        self._stop.set()
        self._thread.join(GLANCE)
        if not self._taken and not self._thread.is_alive():
            with suppress(InputError):
                storage.write_bytes_atomic(self._uri, replace(self.driver, ended=True).to_json())

    def _keep(self) -> None:
        while not self._taken and not self._stop.wait(BEAT):
            with suppress(InputError):  # the store is down: for other drivers as well
                self.beat()

    def _is_ours(self) -> bool:
        found = Driver.read(storage.read_bytes(self._uri))
        return found is not None and found.mark == self.driver.mark


@contextmanager
def holding_lease(root: str, say: Say) -> Iterator[Lease]:
    """The study below `root` is this process's while the context lasts.

    Waits, and says so, where a driver elsewhere may be dead. Raises InputError where one is alive.
    """
    lease = _acquire(storage.join(root, "driver"), say)
    lease.start()
    try:
        yield lease
    finally:
        lease.end()


def _acquire(folder: str, say: Say) -> Lease:
    while True:
        newest = max(_numbers(folder), default=0)
        if newest:
            _wait_for_end(storage.join(folder, f"{newest:06d}.json"), say)
        lease = Lease(folder, newest + 1)
        if lease.create():
            for number in _numbers(folder):
                if number < lease.number:
                    storage.remove(storage.join(folder, f"{number:06d}.json"))
            return lease


def _wait_for_end(uri: str, say: Say) -> None:
    """Return once the driver in a file has ended or is dead; InputError as soon as it shows that it lives."""
    first = _content(uri)
    driver = Driver.read(first)
    if driver is not None and driver.ended:
        return
    if driver is not None and driver.is_here:
        if driver.is_gone:
            say(f"taking over from a driver that is gone: {driver}")
            return
        raise _busy(driver)
    say(f"another driver may be running this study: {driver}; watching for {EXPIRY:g} s whether it is alive")
    deadline = time.monotonic() + EXPIRY
    while time.monotonic() < deadline:
        time.sleep(GLANCE)
        if (content := _content(uri)) != first:
            now = Driver.read(content)
            if now is None or now.ended:  # or its file has made room for that of a third
                return
            raise _busy(now)
    say("it shows no sign of life; taking over")


def _busy(driver: Driver) -> InputError:
    return InputError(
        f"study: it is being run already, by {driver}; one driver at a time: stop that one, or let it end"
    )


def _content(uri: str) -> bytes:
    """A file's content; nothing where it has been removed."""
    try:
        return storage.read_bytes(uri)
    except InputError:
        if storage.exists(uri):
            raise
        return b""


def _numbers(folder: str) -> list[int]:
    stems = (name.removesuffix(".json") for name in storage.listdir(folder))
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _machine() -> str:
    """This machine since its last start, as far as process numbers mean the same (not across containers)."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux only; elsewhere the name has to do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _began(pid: int) -> str:
    """When a process began, in ticks since the machine did; nothing where it is gone or cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
