"""What counts as a crash: a process, machine, peer or store that was lost, so that trying again may help.

What our own code raises would be raised again: it becomes a row with status failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import ray

from sparse_model.storage.store_errors import StorageUnavailable, redacted


class Crash(NamedTuple):
    """One kind of thing that can be lost: how an error tells of it, and why that is no fault of our code."""

    kind: str
    test: Callable[[BaseException], bool]
    why: str


def _is_rays(error: BaseException) -> bool:
    return isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)


def _is_worker(error: BaseException) -> bool:  # by name: one of the two is private to Ray Train
    return type(error).__name__ in ("WorkerHealthCheckFailedError", "PreemptionError")


def _is_peer(error: BaseException) -> bool:
    # by name: whoever has an error of torch's has torch, others do without
    names = {kind.__name__ for kind in type(error).__mro__}
    return "DistError" in names or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _is_store(error: BaseException) -> bool:
    return isinstance(error, StorageUnavailable)


CRASHES = (
    Crash(
        "process or machine",
        _is_rays,
        "Ray says in errors of its own that it lost an actor, a task's process, a node or an object of one; "
        "it wraps what our code raises in a RayTaskError",
    ),
    Crash("training worker", _is_worker, "Ray Train found a worker gone, or its machine was taken back"),
    Crash(
        "peer",
        _is_peer,
        "the workers that are left raise at once when the machine of another is gone, which takes Ray seconds to see",
    ),
    Crash("store", _is_store, "it was asked again for as long as storage is given, and did not answer"),
)


def crash_of(error: BaseException) -> Crash | None:
    """The kind of thing that was lost, by the first of an error's causes that tells of one."""
    return next((crash for cause in _causes(error) for crash in CRASHES if crash.test(cause)), None)


def is_crash(error: BaseException) -> bool:
    """Whether something was lost (to be tried again) rather than our code raised (as it would again)."""
    return crash_of(error) is not None


def one_line(error: BaseException) -> str:
    """The innermost reason of an error, as one line."""
    failures = getattr(error, "worker_failures", None)
    innermost = _inner(next(iter(failures.values())) if failures else error)
    return redacted(f"{type(innermost).__name__}: {' '.join(str(innermost).split())}")[:500]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What Ray Train and Ray wrapped, as it is and unwrapped."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    for failure in failures.values():
        yield failure
        yield _inner(failure)


def _inner(error: BaseException) -> BaseException:
    inner: BaseException = getattr(error, "_base_exc", None) or getattr(error, "cause", None) or error
    return inner
