"""What proofs and other searches say of circuits: baselines, necessity, controls, the price of faithfulness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean

from circuit.proofs.verdicts import CONTROL, RUINED
from sweeps.claims.claim import NO_ROWS, ClaimPart, Rule
from sweeps.claims.fronts import TARGET
from sweeps.claims.intervals import AS_SHARE, NATS, Measured, mean_over_tasks, over_tasks
from sweeps.claims.landed import Landed, LandedRow

LEARNED = "learned + eliminated"
RIVALS = ("attribution", "integrated", "edge attribution")
"""The strong baselines: those that know gradients."""
MOST = 0.5
"""Share of tasks that most of them are more than."""


def learned_against_baselines(landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """Edges of circuits chosen by each baseline over those of learned masks, on the tasks that both reach."""
    rows = [
        row for study in studies for row in landed.baselines(study) if row["target_loss"] == TARGET and row["edges"]
    ]
    return [ClaimPart(way, _over(_by_task(rows, way), _by_task(rows, LEARNED)), Rule("above", 1)) for way in RIVALS]


def _by_task(rows: Iterable[LandedRow], way: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["way"] == way:
            found.setdefault(row["task"], []).append(math.log(row["edges"]))
    return found


def necessity_calibrated(landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """Calibrated loss with only the circuit ablated: of sparse models, and how far above that of dense ones."""
    sparse, dense = (
        means_by_task(_counted(landed, studies, kind), lambda row: row["necessity_calibrated_loss"])
        for kind in ("sparse", "dense")
    )
    common = sorted(sparse.keys() & dense.keys())
    return [
        ClaimPart("sparse", _mean(sparse.values(), "{:.3f}"), Rule("above", RUINED)),
        ClaimPart("sparse less dense", _mean([sparse[t] - dense[t] for t in common], NATS), Rule("above", 0)),
        ClaimPart("dense", _mean(dense.values(), "{:.3f}")),
    ]


def controls(landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """Share of tasks whose sparse circuits pass: none for nonsense, or in shuffled weights, has less than twice the
    edges."""
    made = [row for row in _counted(landed, studies, "sparse") if row["proofs"] == "full"]
    parts = []
    for name, column in (("nonsense", "nonsense_edges"), ("shuffled weights", "shuffled_weights_edges")):
        by_task = means_by_task(made, partial(_passes, column))
        parts.append(ClaimPart(name, _mean(by_task.values(), AS_SHARE), Rule("above", MOST)))
    return parts


def _passes(control: str, row: LandedRow) -> float:
    return float(row[control] is None or row[control] >= CONTROL * row["edges"])


def price_of_faithfulness(landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """Edges of faithful circuits over those of plain ones, of the same models and tasks, by kind; dense over sparse."""
    prices = {kind: _prices(landed, studies, kind) for kind in ("sparse", "dense")}
    return [
        ClaimPart("dense price over sparse price", _over(prices["dense"], prices["sparse"]), Rule("above", 1)),
        *(ClaimPart(f"{kind} price", _over(price, {task: [0.0] for task in price})) for kind, price in prices.items()),
    ]


def _prices(landed: Landed, studies: Sequence[str], kind: str) -> dict[str, list[float]]:
    """Task -> logarithms of the price, one for each model that has circuits of both kinds."""
    edges = {
        method: {
            (row["study"], row["trial"], row["task"]): row["edges"] for row in _counted(landed, studies, kind, method)
        }
        for method in ("node", "faithful")
    }
    found: dict[str, list[float]] = {}
    for key in sorted(edges["node"].keys() & edges["faithful"].keys()):
        found.setdefault(key[2], []).append(math.log(edges["faithful"][key] / edges["node"][key]))
    return found


def _counted(landed: Landed, studies: Sequence[str], kind: str, method: str = "node") -> list[LandedRow]:
    asked = (kind, method, TARGET)
    rows = landed.circuits(studies)
    return [row for row in rows if row["counted"] and (row["kind"], row["method"], row["target_loss"]) == asked]


def means_by_task(rows: Iterable[LandedRow], figure: Callable[[LandedRow], float | None]) -> dict[str, float]:
    """Task -> mean of a figure over the rows that have it: models first, so that tasks count the same."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (value := figure(row)) is not None:
            found.setdefault(row["task"], []).append(value)
    return {task: fmean(values) for task, values in sorted(found.items())}


def _mean(values: Iterable[float], form: str) -> Measured | str:
    there = list(values)
    return mean_over_tasks(there, form) if there else NO_ROWS


def _over(above: Mapping[str, Sequence[float]], below: Mapping[str, Sequence[float]]) -> Measured | str:
    """Geometric mean over common tasks of one figure over another, both as logarithms."""
    common = sorted(above.keys() & below.keys())
    return over_tasks([math.exp(fmean(above[t]) - fmean(below[t])) for t in common]) if common else NO_ROWS
