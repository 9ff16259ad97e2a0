"""Being told how a search goes, and stopping it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

Stage = Literal["search", "proofs", "adversary", "nonsense", "backups", "stability"]


class Update(NamedTuple):
    """Where a search is: `step` of `steps` of mask learning, and the nodes and task loss in nats of what was judged
    last. Step and steps stay as they are while parts are removed; every search of masks starts them anew."""

    stage: Stage
    step: int
    steps: int
    nodes: int
    loss: float


Progress = Callable[[Update], bool | None]
"""Told of every step; where it returns true the search stops."""


class Stopped(Exception):
    """The search was asked to stop. `find_circuits` turns it into circuits of status stopped."""


class Watch:
    """Passes on what a search does to the one who asked for it."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress
        self.stage: Stage = "search"
        self.step, self.steps = 0, 0

    def learning(self, step: int, steps: int, nodes: int, loss: float) -> None:
        """After a step of mask learning; raises `Stopped` where that is the last."""
        self.step, self.steps = step, steps
        self.judged(nodes, loss)

    def judged(self, nodes: int, loss: float) -> None:
        """After a candidate was judged; raises `Stopped` where that is the last."""
        if self.progress is not None and self.progress(Update(self.stage, self.step, self.steps, nodes, loss)):
            raise Stopped


SILENT = Watch()
