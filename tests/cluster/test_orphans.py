"""Placement groups that outlive their creator."""

from __future__ import annotations

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
    assert state(lost) == "CREATED", "looked for orphans without a reason"
    watch.expect()
    watch.remove()
    assert orphans() == []
    assert [state(group) for group in (lost, kept, own, detached)] == ["REMOVED", "CREATED", "CREATED", "CREATED"]
