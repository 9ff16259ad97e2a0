"""How circuits of a study are searched."""

from __future__ import annotations

from typing import Any

from circuit.search.config import PruneConfig
from sweeps.study.study import Study


def settings(study: Study, target: float | None = None, **changes: Any) -> PruneConfig:
    """How circuits of the study are searched, at the first of its target losses or at `target`; which tasks are solved,
    the study's own target decides where it names no other loss. `changes` are other fields of `PruneConfig`."""
    target = study.target_loss if target is None else target
    solved = study.pruning.solved_loss or study.target_loss
    return PruneConfig.model_validate(
        study.pruning.model_dump() | {"target_loss": target, "solved_loss": solved, **changes}
    )
