"""What counts as a crash, told by real errors: of Ray's and torch's classes here, of lost processes below."""

from __future__ import annotations

import multiprocessing
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

from sparse_model.errors import InputError
from sparse_model.storage.store_errors import StorageFailed, StorageUnavailable
from sweeps.engine.crashes import CRASHES, crash_of, one_line

GLOO = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")


class Preempted:
    preempted_ranks = (0,)


def in_task(error: Exception) -> Exception:
    """As `ray.get` raises what a task raised."""
    wrapped: Exception = ray.exceptions.RayTaskError("f", "trace", error).as_instanceof_cause()
    return wrapped


def in_worker(error: Exception) -> Exception:
    """As Ray Train raises what a training worker raised."""
    return WorkerGroupError("x", {0: UserExceptionWithTraceback(error, "")})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ray.exceptions.WorkerCrashedError(), "process or machine"),
        (ray.exceptions.NodeDiedError("gone"), "process or machine"),
        (WorkerGroupError("x", {0: ray.exceptions.ActorDiedError()}), "process or machine"),
        (ControllerError(ray.exceptions.ActorDiedError()), "process or machine"),
        (WorkerGroupError("x", {0: WorkerHealthCheckFailedError("x", OSError("gone"))}), "training worker"),
        (PreemptionError(Preempted()), "training worker"),
        (in_worker(GLOO), "peer"),
        (in_worker(dist.DistBackendError("NCCL communicator was aborted")), "peer"),
        (in_worker(dist.DistNetworkError("Connection reset")), "peer"),
        (in_worker(dist.DistStoreError("Socket Timeout")), "peer"),
        (WorkerGroupError("x", {0: StorageUnavailable("down")}), "store"),
        (in_worker(StorageUnavailable("down")), "store"),
        (in_task(StorageUnavailable("down")), "store"),
        (WorkerGroupError("x", {0: ValueError("ours"), 1: ray.exceptions.ActorDiedError()}), "process or machine"),
    ],
)
def test_lost_things_are_crashes(error: Exception, kind: str) -> None:
    found = crash_of(error)
    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize("error", [ValueError("ours"), InputError("bad"), StorageFailed("refused"), RuntimeError("x")])
def test_what_our_code_raises_is_none(error: Exception) -> None:
    assert [crash_of(wrap(error)) for wrap in (lambda e: e, in_task, in_worker)] == [None] * 3


def test_every_kind_is_explained() -> None:
    assert len({crash.kind for crash in CRASHES}) == len(CRASHES)
    assert all(crash.why for crash in CRASHES)


def test_the_innermost_reason_is_one_line() -> None:
    assert one_line(WorkerGroupError("x", {1: KeyError("a\nb")})).startswith("KeyError: ")
    assert one_line(in_worker(ValueError("odd\nshape"))) == "ValueError: odd shape"


def _worker(rank: int, meet: str, said: Any) -> None:
    dist.init_process_group("gloo", f"file://{meet}", rank=rank, world_size=2, timeout=timedelta(seconds=20))
    try:
        for step in range(1000):
            if rank == 1 and step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.all_reduce(torch.ones(10))
    except Exception as error:
        found = crash_of(error)
        said.put((found and found.kind, one_line(error)))


def test_what_a_worker_raises_whose_peer_was_killed(tmp_path: Path) -> None:
    """Two real processes, one of which is killed amid an all-reduce."""
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    workers = [context.Process(target=_worker, args=(rank, str(tmp_path / "meet"), said)) for rank in range(2)]
    for worker in workers:
        worker.start()
    try:
        kind, line = said.get(timeout=60)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    assert kind == "peer", line


@ray.remote(max_retries=0)
def _end(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("ours") if how == "raised" else StorageUnavailable("down")


@ray.remote
class _Actor:
    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.cluster
def test_what_ray_raises_when_processes_die() -> None:
    """A real Ray whose tasks and actors are killed, or raise."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        kinds = {}
        for name, reference in {
            **{how: _end.remote(how) for how in ("killed", "raised", "down")},
            "actor": _Actor.remote().end.remote(),
        }.items():
            with pytest.raises(ray.exceptions.RayError) as caught:
                ray.get(reference)
            found = crash_of(caught.value)
            kinds[name] = found and found.kind
    finally:
        ray.shutdown()
    assert kinds == {"killed": "process or machine", "actor": "process or machine", "down": "store", "raised": None}
