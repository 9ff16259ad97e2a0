"""Rows planted below a folder of studies: what came out is known, so each rule's verdict is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
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


BASE = {"gradient": "normalize", "lr": 0.1, "warmup": 0.01, "anneal": 0.5, "sharkfin": True, "min_alive": 1}
VARIANTS = {
    "base": {},
    "none": {"gradient": "none", "lr": 10.0},
    "clip": {"gradient": "clip", "lr": 10.0},
    "warmup": {"warmup": 0.0},
    "anneal": {"anneal": 0.0},
    "sharkfin": {"sharkfin": False},
    "alive": {"min_alive": 0},
    "bigram": {"bigram": False},
    "sixteenth": {"activation_fraction": 0.0625},
    "all": {"activation_fraction": 1.0},
}
OF_MODEL = {"bigram": True, "activation_fraction": 0.25}


def plant_ablations(
    folder: Path, loss: Callable[[str, int], float], edges: Callable[[str], float] = lambda name: 1.0
) -> None:
    """Every variant with three seeds, the base first; an infinite loss has diverged."""
    for i, (name, change) in enumerate(VARIANTS.items()):
        training = BASE | {field: value for field, value in change.items() if field in BASE}
        model = OF_MODEL | {field: value for field, value in change.items() if field in OF_MODEL}
        for seed in range(3):
            value = loss(name, seed)
            ended = math.isfinite(value)
            row = {"seed": seed, "suggestion": i, "val_loss": value if ended else None}
            row |= {"status": "ok" if ended else "diverged", "eligible": ended}
            row |= {"dead_neurons": 0.2 + 0.01 * seed * (name == "alive") if name == "alive" else 0.1}
            config = {"model": model, "training": training | {"seed": seed}}
            plant(folder, "ablations", f"t{i:05d}-{seed}", edges={"node": edges(name)}, config=config, **row)
