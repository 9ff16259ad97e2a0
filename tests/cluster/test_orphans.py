"""Placement groups that outlive their creator."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from sweeps.engine.orphans import Orphans, orphans
from sweeps.engine.session import ray_session
from sweeps.study.study import ResourceConfig

pytestmark = pytest.mark.cluster


@ray.remote(num_cpus=0)
class Creator:
    """Stands for Ray Train's controller."""

    def reserve(self, lifetime: str | None = None) -> Any:
        group = placement_group([{"CPU": 0.1}], lifetime=lifetime)
        ray.get(group.ready())
        return group

    def lives(self) -> bool:
        return True


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    with ray_session(ResourceConfig(), None):
        yield


def answers_till_dead(actor: Any) -> None:
    """Ray's kill does not wait: the actor may answer a few more calls."""
    while ray.get(actor.lives.remote()):
        pass


def state(group: Any) -> str:
    return str(placement_group_table(group)["state"])


def test_only_what_a_dead_actor_has_reserved_is_removed(own_ray: None) -> None:
    dying, alive = Creator.remote(), Creator.remote()
    lost, kept = ray.get([dying.reserve.remote(), alive.reserve.remote()])
    own, detached = placement_group([{"CPU": 0.1}]), ray.get(dying.reserve.remote("detached"))
    assert orphans() == []
    ray.kill(dying)
    with pytest.raises(ray.exceptions.RayActorError):
        answers_till_dead(dying)
    assert orphans() == [lost]
    watch = Orphans()
    watch.remove()
    assert orphans() == []
    assert [state(group) for group in (lost, kept, own, detached)] == ["REMOVED", "CREATED", "CREATED", "CREATED"]


LOST_DRIVER = """
import time

import ray
from ray.util.placement_group import placement_group

ray.init("{address}", log_to_driver=False)


@ray.remote(num_cpus=0)
class Controller:
    def reserve(self):
        while True:
            placement_group([{{"CPU": 0.0001}}])


controller = Controller.remote()
controller.reserve.remote()
while len(ray.util.placement_group_table()) < {groups}:
    time.sleep(0.01)
print("reserving", flush=True)
time.sleep(600)
"""
"""A controller that is reserving at whatever moment its driver is lost."""


def test_what_a_controller_reserves_while_it_dies_with_its_driver_is_removed(own_ray: None) -> None:
    """Ray has noted its death before it registers the last of these, and never frees them."""
    found: list[Any] = []
    own = ray.get_runtime_context().get_job_id()
    for _ in range(10):  # most drivers leave some
        known = len(placement_group_table())
        said = LOST_DRIVER.format(address=ray.get_runtime_context().gcs_address, groups=known + 20)
        with subprocess.Popen([sys.executable, "-c", said], stdout=subprocess.PIPE) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == b"reserving\n"
            driver.kill()
        time.sleep(3)  # its actor is dead by then
        found = [group for group in orphans() if not group.id.hex().endswith(own)]
        if found:
            break
    assert found, "Ray frees them by itself: sweeps/engine/orphans.py need not look at other jobs"
    Orphans().remove()
    assert {state(group) for group in found} == {"REMOVED"}
