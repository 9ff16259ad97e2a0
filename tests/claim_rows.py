"""Rows planted below a folder of studies: what came out is known, so each rule's verdict is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.claims import CLAIMS, Landed
from sweeps.claims.claim import Finding
from sweeps.frontier.rows import write_circuit_rows, write_trial_row

TASKS = ("if_equals", "lambda_func", "var_if", "with_as", "with_open")
WOBBLE = (0.9, 1.05, 1.0, 0.95, 1.1)
"""Tasks differ, but never by a factor that a planted effect has."""


def plant(
    folder: Path,
    study: str,
    key: str,
    *,
    edges: Mapping[str, float],
    config: Mapping[str, Any] | None = None,
    circuit: Mapping[str, Any] | None = None,
    tasks: tuple[str, ...] = TASKS,
    targets: tuple[float, ...] = (0.15,),
    **row: Any,
) -> None:
    """A trial and its circuits: about so many `edges` by each method, on every task."""
    root = str(folder / study)
    whole = {"study": study, "trial": key, "suggestion": 0, "kind": "sparse", "status": "ok", "eligible": True}
    whole |= {"seed": 0, "val_loss": 2.0, "target_loss": targets[0], "circuit_edges": 9.0, "tasks_solved": len(tasks)}
    whole |= {"config": json.dumps(config or {}), "tokens": 1, "train_seconds": 1.0, "prune_seconds": 1.0, "data": "d"}
    circuits = [
        {"study": study, "trial": key, "task": task, "target_loss": target, "method": method, "status": "ok"}
        | {"edges": round(1000 * n * factor), "heldout_loss": target, "counted": True}
        | dict(circuit or {})
        for method, n in edges.items()
        for target in targets
        for task, factor in zip(tasks, WOBBLE, strict=False)
    ]
    write_circuit_rows(root, key, circuits)
    write_trial_row(root, whole | row)


def found(folder: Path, number: int, name: str = "") -> Finding:
    """What the rows below a folder say of the claim of a number (and of a name that contains this)."""
    (claim,) = (claim for claim in CLAIMS if claim.number == number and name in claim.name)
    return claim.finding(Landed(str(folder)))
