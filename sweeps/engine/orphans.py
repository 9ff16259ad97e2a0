"""Placement groups nobody can use any more: those whose creator is dead.

Ray keeps what an actor has reserved until its whole job has ended (ray 2.60, gcs_placement_group.cc,
IsPlacementGroupLifetimeDone). When a trial's process dies, Ray Train's controller dies with it, and the cores of its
training workers stay reserved; the trial, started again, would wait for them for ever. Ray Train has an actor of its
own against this (placement_group_cleaner.py), but that one knows nothing of groups whose workers are not up yet, and
finds out that a controller is dead from the dashboard only, which a small Ray does not have.
"""

from __future__ import annotations

import time

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

WATCH, INTERVAL = 60.0, 2.0
"""Seconds after the loss of a trial's process in which its controller may still be dying; between two looks."""


class Orphans:
    """Removes them, in the driver, for a while after each loss: Ray's list of groups grows with the study."""

    def __init__(self) -> None:
        self._next = self._until = float("-inf")

    def expect(self) -> None:
        """A process was lost that may leave some."""
        self._next = time.monotonic()
        self._until = self._next + WATCH

    def remove(self) -> None:
        """Remove those there are, if any are expected and it is time for a look."""
        now = time.monotonic()
        if self._next <= now < self._until:
            self._next = now + INTERVAL
            for group in orphans():
                remove_placement_group(group)


def orphans() -> list[PlacementGroup]:
    """Placement groups of this job that were created by an actor that is dead."""
    job = ray.get_runtime_context().get_job_id()
    groups = map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table())
    return [
        PlacementGroup(ray.PlacementGroupID(group.placement_group_id))
        for group in groups
        if group.creator_job_id.hex() == job
        and group.state != PlacementGroupTableData.REMOVED
        and not group.is_detached
        and _is_dead(group.creator_actor_id)
    ]


def _is_dead(actor: bytes) -> bool:
    """Whether an actor is dead; what the driver itself has created, such as Tune's groups, has none."""
    if ray.ActorID(actor).is_nil():
        return False
    found = state.actor_table(actor.hex())
    return not found or found["State"] == "DEAD"  # Ray forgets the oldest dead ones
