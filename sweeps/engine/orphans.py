"""Placement groups nobody can use any more: those whose creator is dead, of this job and of jobs that have ended.

Ray keeps what an actor has reserved until its whole job has ended (ray 2.60, gcs_placement_group.cc,
IsPlacementGroupLifetimeDone). When a trial's process dies, Ray Train's controller dies with it, and the cores of its
training workers stay reserved; the trial, started again, would wait for them for ever. Ray Train has an actor of its
own against this (placement_group_cleaner.py), but that one knows nothing of groups whose workers are not up yet, and
finds out that a controller is dead from the dashboard only, which a small Ray does not have.

And where a driver was killed, the controller of its trial lives a moment longer: it sees its workers die, and reserves
cores for others. Ray has noted its death by then, and nothing ever frees them: the next driver would wait for ever.
"""

from __future__ import annotations

import time

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

WATCH, INTERVAL = 60.0, 2.0
"""Seconds after the loss of a trial's process, or of a driver, in which a controller may still be dying; between two
looks."""


class Orphans:
    """Removes them, in the driver, for a while after it has begun, and after each loss: Ray's list of groups grows with
    the study."""

    def __init__(self) -> None:
        self.expect()

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
    """Placement groups of this job and of jobs that have ended, whose creator is dead and which were to end with it."""
    accessor = state._connect_and_get_accessor()
    jobs = {job["JobID"] for job in state.job_table() if job["IsDead"]} | {ray.get_runtime_context().get_job_id()}
    groups = map(PlacementGroupTableData.FromString, accessor.get_placement_group_table())
    return [
        PlacementGroup(ray.PlacementGroupID(group.placement_group_id))
        for group in groups
        if group.creator_job_id.hex() in jobs
        and group.state != PlacementGroupTableData.REMOVED
        and not group.is_detached
        and _is_dead(group.creator_actor_id)
    ]


def _is_dead(actor: bytes) -> bool:
    """Whether an actor is dead. What a driver itself has created, such as Tune's groups, has none, and ends with it."""
    if ray.ActorID(actor).is_nil():
        return False
    found = state.actor_table(actor.hex())
    return not found or found["State"] == "DEAD"  # Ray forgets the oldest dead ones
