"""Pruning tasks on a real Ray: what becomes of the others where one raises, keeps dying, or the trial leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from sparse_model.storage.store_errors import StorageUnavailable
from sweeps.engine.prune import LOST, _bounded
from sweeps.engine.session import ray_session
from sweeps.study.study import ResourceConfig

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def _own_ray() -> Iterator[None]:
    with ray_session(ResourceConfig(), None):
        yield


@ray.remote(num_cpus=1, max_retries=1)
def job(what: str, folder: str) -> str:
    """Does as it is told, and leaves a mark of every start and of its end."""
    (Path(folder) / f"{what} {time.monotonic_ns()}").touch()
    if what == "dies":
        os._exit(1)
    if what == "raises":
        raise ValueError("ours")
    if what == "down":
        raise StorageUnavailable("storage: down")
    if what == "waits":
        time.sleep(60)
    return what


def starts(folder: Path, what: str) -> int:
    return len(list(folder.glob(f"{what} *")))


def test_one_that_keeps_dying_costs_only_itself(tmp_path: Path) -> None:
    names = ("good", "dies", "raises", "fine")
    found: dict[str, Any] = dict(_bounded({name: (name, str(tmp_path)) for name in names}, job.remote, 2))
    assert (found["good"], found["fine"]) == ("good", "fine")
    assert isinstance(found["dies"], LOST)
    assert "ours" in str(found["raises"])
    assert {name: starts(tmp_path, name) for name in names} == {"good": 1, "dies": 2, "raises": 1, "fine": 1}


def test_what_still_runs_is_cancelled_when_the_trial_leaves(tmp_path: Path) -> None:
    jobs = {name: (name, str(tmp_path)) for name in ("waits", "down")}
    began = time.monotonic()
    with pytest.raises(StorageUnavailable):
        list(_bounded(jobs, job.remote, 2))
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() - began < 40, "it goes on without its trial"
        time.sleep(0.1)
