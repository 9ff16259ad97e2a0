"""Edges of dense models over those of sparse ones: at equal validation loss, equal compute, equal nonzeros.

At equal loss the fronts are compared as `sweeps frontier --compare` compares them. Compute and nonzeros have no front
(more of either costs): each kind is read there as a curve through its configurations, straight between them.

Shapes: n trials of a kind, K tasks, P points of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from circuit.search.config import METHODS
from sparse_model.errors import InputError
from sweeps.claims.claim import NO_ROWS, ClaimPart, Rule
from sweeps.claims.intervals import LEAST_TASKS, RATIO, Measured, counted_as, over_tasks
from sweeps.claims.landed import Landed
from sweeps.frontier.comparison import Array, Comparison
from sweeps.frontier.matched import LOSS_POINTS

SPARSE, DENSE = "kind = 'sparse'", "kind = 'dense'"
TARGET = 0.15
"""Task loss at which circuits are compared where nothing else is said, in nats."""
ALL_TARGETS = (0.5, 0.3, 0.15, 0.08, 0.04, 0.02, 0.01, 0.005, 0.002)
"""The paper's task losses."""
LOSS_GAP = 0.1
"""Nats by which mean validation losses of models matched in loss may differ."""


MATCHED_PART = ("headline-matched",)
"""Studies of sparse and dense models matched in loss, of which there are faithful circuits."""


def at_equal_loss(limit: float, landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """The mean ratio over the fronts' common losses, by each method. A front has no faithful circuits, which take too
    long to find in all of its models: in their place are those of the models matched in loss."""
    parts = []
    for method in METHODS:
        name, found = str(method), _matched_ratio(landed, studies, method)
        if found == NO_ROWS and landed.has(*MATCHED_PART) and _there(landed, MATCHED_PART, method, TARGET):
            name = f"{method}, of {' and '.join(MATCHED_PART)}"
            found = mismatch(landed, MATCHED_PART) or ratio_of_kinds(task_edges(landed, MATCHED_PART), method, TARGET)
        parts.append(ClaimPart(name, found, Rule("above", limit)))
    return parts


def _matched_ratio(landed: Landed, studies: Sequence[str], method: str) -> Measured | str:
    found = landed.frontier(studies)
    if not _there(landed, studies, method, TARGET):
        return NO_ROWS
    try:
        last = found.matched(SPARSE, DENSE, target=TARGET, method=method).to_pylist()[-1]
        n_tasks = len(found.between(SPARSE, DENSE, target=TARGET, method=method).tasks)
    except InputError as error:
        return _plain(error)
    few = n_tasks < LEAST_TASKS
    low, high = (None, None) if few else (last["ratio_low"], last["ratio_high"])
    return Measured(last["ratio"], low, high, counted_as(n_tasks, "task"), RATIO)


def at_equal(column: str, landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """The mean ratio over the common range of a column of trials, `flops` or `l0`, by each method."""
    return [ClaimPart(method, _aligned_ratio(column, landed, studies, method), Rule("above", 1)) for method in METHODS]


def _aligned_ratio(column: str, landed: Landed, studies: Sequence[str], method: str) -> Measured | str:
    if not _there(landed, studies, method, TARGET):
        return NO_ROWS
    try:
        comparison = landed.frontier(studies).between(SPARSE, DENSE, target=TARGET, method=method)
    except InputError as error:
        return _plain(error)
    curves = [_curve(comparison, kind, column) for kind in ("sparse", "dense")]
    if any(curve is None for curve in curves):
        return "models of one kind have no circuits of the common tasks"
    (x_sparse, sparse), (x_dense, dense) = (curve for curve in curves if curve is not None)
    low, high = max(x_sparse[0], x_dense[0]), min(x_sparse[-1], x_dense[-1])
    if low > high:
        return f"sparse and dense models have no {column} in common"
    points = np.unique(np.linspace(low, high, LOSS_POINTS))
    gaps = [
        np.interp(points, x_dense, d) - np.interp(points, x_sparse, s) for s, d in zip(sparse.T, dense.T, strict=True)
    ]
    return over_tasks([float(np.exp(gap.mean())) for gap in gaps])


def _curve(comparison: Comparison, kind: str, column: str) -> tuple[Array, Array] | None:
    """(P) logarithms of a column, ascending, and (P, K) log edges there, means over trials of one value."""
    of_kind = np.array([value == kind for value in comparison.trials["kind"].to_pylist()]) & comparison.compared
    if not of_kind.any():
        return None
    x = np.log(comparison.trials[column].to_numpy(zero_copy_only=False).astype(float)[of_kind])
    values, which = np.unique(np.round(x, 2), return_inverse=True)
    logs = comparison.log_edges[of_kind]
    return values, np.stack([logs[which == i].mean(axis=0) for i in range(len(values))])


def at_every_target(limit: float, landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """Of models matched in loss, by method and target: geometric mean over the common tasks of the kinds' ratio."""
    if (problem := mismatch(landed, studies)) is not None:
        return [ClaimPart("all", problem, Rule("above", limit))]
    edges = task_edges(landed, studies)
    return [
        ClaimPart(f"{method} at {target:g}", ratio_of_kinds(edges, method, target), Rule("above", limit))
        for method in METHODS
        for target in ALL_TARGETS
    ]


def mismatch(landed: Landed, studies: Sequence[str]) -> str | None:
    """Why the models of two kinds cannot be compared as models matched in loss."""
    losses = {
        kind: [row["val_loss"] for row in landed.trials(studies) if row["kind"] == kind and row["status"] == "ok"]
        for kind in ("sparse", "dense")
    }
    if not all(losses.values()):
        return NO_ROWS
    sparse, dense = (float(np.mean(values)) for values in losses.values())
    if abs(sparse - dense) > LOSS_GAP:
        return f"validation losses are not matched: sparse {sparse:.3f}, dense {dense:.3f}"
    return None


TaskEdges = dict[tuple[str, str, float], dict[str, list[float]]]
"""(kind, method, target) -> task -> log edges of the counted circuits, a trial each."""


def task_edges(landed: Landed, studies: Sequence[str]) -> TaskEdges:
    """Log edges of every counted circuit; of one that two studies found in the same model, once."""
    found: TaskEdges = {}
    seen = set()
    for row in landed.circuits(studies):
        model = row["trial"].split("-")[-1]  # a key ends in what is trained
        of = model, row["method"], row["target_loss"], row["task"]
        if row["counted"] and of not in seen:
            seen.add(of)
            by_task = found.setdefault((row["kind"], row["method"], row["target_loss"]), {})
            by_task.setdefault(row["task"], []).append(float(np.log(row["edges"])))
    return found


def ratio_of_kinds(edges: TaskEdges, method: str, target: float) -> Measured | str:
    """Dense edges over sparse ones, a geometric mean over the tasks common to both."""
    sparse, dense = (edges.get((kind, method, target), {}) for kind in ("sparse", "dense"))
    common = sorted(sparse.keys() & dense.keys())
    if not common:
        return NO_ROWS
    return over_tasks([float(np.exp(np.mean(dense[task]) - np.mean(sparse[task]))) for task in common])


def _there(landed: Landed, studies: Sequence[str], method: str, target: float) -> bool:
    return any(
        (row["method"], row["target_loss"]) == (method, target) and row["counted"] for row in landed.circuits(studies)
    )


def _plain(error: InputError) -> str:
    return str(error).removeprefix("compare: ").replace(SPARSE, "sparse").replace(DENSE, "dense")
