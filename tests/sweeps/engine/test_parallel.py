"""Jobs in processes of their own, whatever becomes of these."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children

import pytest

from sweeps.engine import parallel
from sweeps.engine.parallel import on_all_cores


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On any machine; and nothing is left running."""
    monkeypatch.setattr(parallel, "cpu_count", lambda: 2)
    yield
    deadline = time.monotonic() + 10
    while active_children():
        assert time.monotonic() < deadline, "processes outlive the work"
        time.sleep(0.05)


def test_every_job_has_its_result() -> None:
    assert dict(on_all_cores(math.isqrt, [4, 9, 16])) == {4: 2, 9: 3, 16: 4}


def test_what_a_job_raises_is_raised_here() -> None:
    with pytest.raises(ValueError, match="nonnegative"):
        list(on_all_cores(math.isqrt, [4, -9]))


def test_a_process_that_dies_is_no_wait_for_ever() -> None:
    with pytest.raises(BrokenProcessPool):
        list(on_all_cores(os._exit, [1, 2]))


def test_a_caller_that_goes_no_further_does_not_wait_for_the_rest() -> None:
    began = time.monotonic()
    results = on_all_cores(time.sleep, [0.0, 120.0])
    assert next(results) == (0.0, None)
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 60
