"""A stop that was asked for is not forgotten, whoever swallows the exception."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from sweeps.engine.interrupts import remembered_interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_swallowed_interrupt_is_raised_again(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with remembered_interrupts() as interrupts:
        interrupts.check()
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert signal.getsignal(number) is before
