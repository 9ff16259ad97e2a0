"""What follows width, nonzeros and sparsity: slopes over the logarithm to base 2, so for one doubling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparse_model.errors import InputError
from sweeps.claims.claim import ClaimPart, Rule
from sweeps.claims.fronts import TARGET
from sweeps.claims.intervals import NATS, Measured, factor, slope_over_tasks, slope_over_trials
from sweeps.claims.landed import Landed, LandedRow

SAME_NONZEROS = 0.1
"""Relative difference of nonzeros of models that count as having the same."""


def width_at_fixed_nonzeros(landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """Loss and edges for each doubling of the width, over sparse models whose nonzeros are within a tenth."""
    sparse = _sparse(landed, studies)
    middle = float(np.median([row["l0"] for row in sparse])) if sparse else 0.0
    kept = [row for row in sparse if abs(row["l0"] - middle) <= SAME_NONZEROS * middle]
    return [
        ClaimPart("validation loss", _loss_slope(kept, _log2("d_model")), Rule("below", 0)),
        ClaimPart("edges", _edge_slope(landed, studies, kept, _log2("d_model")), Rule("below", 1)),
    ]


def nonzeros_at_fixed_width(landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """Loss and edges for each doubling of the nonzeros, over the sparse models of the width that most have."""
    kept = _of_commonest_width(_sparse(landed, studies))
    return [
        ClaimPart("validation loss", _loss_slope(kept, _log2("l0")), Rule("below", 0)),
        ClaimPart("edges", _edge_slope(landed, studies, kept, _log2("l0")), Rule("above", 1)),
    ]


def kurtosis_by_sparsity(landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """The residual stream's kurtosis for each halving of the fraction, all else equal."""
    kept = [row for row in differing_only_in(_sparse(landed, studies), "training.fraction") if row["kurtosis"]]
    x = [-math.log2(row["fraction"]) for row in kept]
    if len(set(x)) < 2:
        return [ClaimPart("kurtosis", "models of one fraction only", Rule("above", 1))]
    return [
        ClaimPart(
            "kurtosis", factor(slope_over_trials(x, [math.log(row["kurtosis"]) for row in kept])), Rule("above", 1)
        )
    ]


def flat_config(row: LandedRow) -> dict[str, Any]:
    """A trial's configuration by path, e.g. `training.lr`, without its seed."""
    sections = ((name, row["config"].get(name) or {}) for name in ("model", "training"))
    fields = {f"{name}.{field}": value for name, section in sections for field, value in section.items()}
    return {path: value for path, value in fields.items() if path != "training.seed"}


def differing_only_in(rows: Sequence[LandedRow], but: str) -> list[LandedRow]:
    """The largest set of rows whose configurations differ in one field at the most."""
    groups: dict[str, list[LandedRow]] = {}
    for row in rows:
        rest = {path: value for path, value in flat_config(row).items() if path != but}
        groups.setdefault(repr(sorted(rest.items())), []).append(row)
    return max(groups.values(), key=lambda group: len({flat_config(row).get(but) for row in group}), default=[])


def _of_commonest_width(rows: Sequence[LandedRow]) -> list[LandedRow]:
    widths = [row["d_model"] for row in rows]
    chosen = max(sorted(set(widths)), key=widths.count, default=None)
    return [row for row in rows if row["d_model"] == chosen]


def _sparse(landed: Landed, studies: Sequence[str]) -> list[LandedRow]:
    return [row for row in landed.trials(studies) if row["kind"] == "sparse" and row["status"] == "ok"]


def _log2(column: str) -> Callable[[LandedRow], float]:
    return lambda row: math.log2(row[column])


def _loss_slope(rows: Sequence[LandedRow], x: Callable[[LandedRow], float]) -> Measured | str:
    values = [x(row) for row in rows]
    if len(set(values)) < 2:
        return "models of one size only"
    return slope_over_trials(values, [row["val_loss"] for row in rows], NATS)


def _edge_slope(
    landed: Landed, studies: Sequence[str], rows: Sequence[LandedRow], x: Callable[[LandedRow], float]
) -> Measured | str:
    """Over the tasks that all of the compared models have circuits of."""
    names = ", ".join(f"'{row['study']}/{row['trial']}'" for row in rows)
    try:
        comparison = landed.frontier(studies).compared(
            where=f"study || '/' || trial in ({names})", target=TARGET, method="node"
        )
    except InputError as error:
        return str(error)
    compared = [row for row, there in zip(comparison.trials.to_pylist(), comparison.compared, strict=True) if there]
    values = [x(row) for row in compared]
    if len(set(values)) < 2 or not comparison.tasks:
        return "models of one size only have circuits of common tasks"
    return slope_over_tasks(values, comparison.log_edges[comparison.compared])
