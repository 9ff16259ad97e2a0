"""Ctrl-C and termination, remembered: libraries may swallow the exception, the study must stop all the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Whether the user or the system has asked this process to stop."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if a stop was asked for, now or earlier."""
        if self.asked:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt


@contextmanager
def remembered_interrupts() -> Iterator[Interrupts]:
    """SIGINT and SIGTERM raise KeyboardInterrupt and are remembered while the context lasts. Main thread only.

    Where an exception lands in a destructor or a callback of Ray's, Python prints and drops it. Ray sets a handler of
    its own when it starts, so this comes after.
    """
    interrupts = Interrupts()
    before = {number: signal.signal(number, interrupts._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
