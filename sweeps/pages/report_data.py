"""What a study report shows, as columns. Rows of the frontier are the only source; nothing is measured here.

Shapes: N trials, K tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from circuit.pages.shown import visible
from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.frontier.comparison import Comparison, places
from sweeps.frontier.queries import Frontier
from sweeps.pages.columns import ColumnArray, axis, column_words, flat_configs, floats, shorts, thinned, varied
from sweeps.search.importances import importances, optuna_study
from sweeps.study.folder import study_at
from sweeps.study.study import Study

_FORMAT = "circuit-sweeps/report"
CURVE_POINTS = 24
"""Points of a trial's learning curve that are kept."""
MOST_CURVES = 10_000
HYPERVOLUME_POINTS = 400
MOST_REASONS = 300
"""Characters of the reason of a trial that failed."""
_FIGURES = (
    "val_loss", "train_loss", "l0", "total_params", "tokens", "tasks_solved", "circuit_edges", "circuit_edges_low",
    "circuit_edges_high", "dead_neurons", "kurtosis", "active", "flops", "train_seconds", "prune_seconds", "seed",
    "d_model", "n_layer", "fraction",
)  # fmt: skip
"""Columns of numbers a report holds."""


def report_data(uris: Sequence[str], made: Mapping[str, str]) -> dict[str, Any]:
    """Everything the page of a report draws; `made` is circuit -> address of its page, where there is one."""
    frontier = Frontier(*uris, may_be_empty=True)
    trials = frontier.trials()
    circuits = frontier.circuits()
    studies = [_stored(uri) for uri in uris]
    omitted: list[str] = []
    targets = [value for value in pc.unique(trials["target_loss"]).to_pylist() if value is not None]
    if len(targets) > 1:
        omitted.append(f"The trials have {len(targets)} targets; shown is {targets[0]:g}")
    target = targets[0] if targets else None
    return {
        "format": _FORMAT,
        "version": 1,
        "made_with": f"circuit-sweeps {version('circuit-sweeps')}",
        "uris": [visible(uri, 400) for uri in uris],
        "names": [visible(str(name), 100) for name in pc.unique(trials["study"]).to_pylist() if name],
        "target": target,
        "trials": _trials(trials),
        "axes": _axes(trials, studies),
        "methods": _methods(frontier, trials, circuits, target, omitted),
        "pages": dict(made),
        "curves": _curves(frontier, trials, omitted),
        "hypervolume": _hypervolume(frontier),
        "importances": _importances(uris),
        "studies": [visible_lines(study.to_yaml()) if study else "" for study in studies],
        "omitted": omitted,
    }


def visible_lines(text: str) -> str:
    """A text of several lines with nothing unseen in it."""
    return "\n".join(visible(line, 400) for line in text.splitlines())


def _stored(uri: str) -> Study | None:
    try:
        return study_at(uri)
    except InputError:
        return None


def _trials(trials: Any) -> dict[str, Any]:
    columns = {name: trials[name].to_pylist() for name in trials.column_names}
    finished = [None if value is None else value.timestamp() for value in columns["finished"]]
    start = min((at for at in finished if at is not None), default=0.0)
    return {
        "n": len(trials),
        "trial": [visible(str(key), 100) for key in columns["trial"]],
        "study": column_words([visible(name or "", 100) for name in columns["study"]]),
        "kind": column_words(columns["kind"]),
        "status": column_words(columns["status"]),
        "reason": column_words([visible(reason or "", MOST_REASONS) for reason in columns["reason"]]),
        "tasks_tried": floats(columns["tasks_tried"]),
        "start": start,
        "finished": floats([None if at is None else at - start for at in finished]),
        **{name: floats(columns[name]) for name in _FIGURES},
    }


def _axes(trials: Any, studies: Sequence[Study | None]) -> list[dict[str, Any]]:
    """Parameters that were drawn, each with the trials that drew it."""
    configs = flat_configs(trials["config"].to_pylist())
    kinds = trials["kind"].to_pylist()
    by_kind = _sampled(studies)
    sampled = None if by_kind is None else {name for names in by_kind.values() for name in names}
    names = varied(configs, kinds, sampled)
    return [
        axis(
            name,
            configs,
            [by_kind is None or name == "training.seed" or name in by_kind.get(kind, ()) for kind in kinds],
        )
        for name in names
    ]


def _sampled(studies: Sequence[Study | None]) -> dict[str, set[str]] | None:
    """What each kind of trial draws; None where a study is not known."""
    found: dict[str, set[str]] = {}
    for study in studies:
        if study is None:
            return None
        for kind in study.space.kinds():
            found.setdefault(kind, set()).update(study.space.sampled(kind))
    return found


def _methods(
    frontier: Frontier, trials: Any, circuits: Any, target: float | None, omitted: list[str]
) -> list[dict[str, Any]]:
    """Of every method: what is compared, and sizes and proofs of all tasks × trials."""
    there = [m for m in ("node", "edge", "faithful") if m in pc.unique(circuits["method"]).to_pylist()]
    others = [m for m in pc.unique(circuits["method"]).to_pylist() if m is not None and m not in there]
    found = []
    for method in [*there, *sorted(others)]:
        try:
            comparison, note = frontier.compared(method=method), ""
        except InputError as error:  # none that counts: the tasks can be looked at all the same
            comparison, note = None, f"nothing is compared: {error}"
        found.append(_method(method, comparison, note, trials, _at(circuits, method, target)))
    if not found:
        found.append(_method("node", frontier.compared(), "", trials, circuits.slice(0, 0)))
    all_targets = {value for value in pc.unique(circuits["target_loss"]).to_pylist() if value is not None}
    if target is not None and len(all_targets) > 1:
        omitted.append(f"Circuits at {len(all_targets) - 1} other target losses: shown are those at {target:g}")
    return found


def _at(circuits: Any, method: str, target: float | None) -> Any:
    chosen = pc.equal(circuits["method"], method)
    if target is not None:
        chosen = pc.and_(chosen, pc.less_equal(pc.abs(pc.subtract(circuits["target_loss"], target)), 1e-6 * target))
    return circuits.filter(chosen)


def _method(method: str, comparison: Comparison | None, note: str, trials: Any, circuits: Any) -> dict[str, Any]:
    nothing: list[float | None] = [None] * len(trials)
    tasks = sorted(task for task in pc.unique(circuits["task"]).to_pylist() if task)
    edges, summaries, status = _matrix(trials, circuits, tasks)
    return {
        "method": method,
        "suffix": "" if method == "node" else f"-{method}",
        "note": comparison.note() if comparison else note,
        "common": list(comparison.tasks) if comparison else [],
        "edges": floats(comparison.table()["edges"].to_pylist() if comparison else nothing),
        "front": np.flatnonzero(comparison.on_front).tolist() if comparison else [],
        "tasks": [visible(task, 80) for task in tasks],
        "cells": shorts(edges),
        "status": column_words(status),
        "summary": column_words(summaries),
    }


def _matrix(trials: Any, circuits: Any, tasks: Sequence[str]) -> tuple[ColumnArray, list[str], list[str]]:
    """(N × K) edges, 65535 where there is no circuit (and at most 65534), and the summaries and statuses."""
    n, k = len(trials), len(tasks)
    edges = np.full(n * k, 65535, dtype=np.int64)
    summaries, status = [""] * (n * k), [""] * (n * k)
    if not k:
        return edges, summaries, status
    row = places(circuits, trials)
    column = pc.index_in(circuits["task"], value_set=pa.array(list(tasks), pa.string()))
    fields = zip(row.to_pylist(), column.to_pylist(), circuits["edges"].to_pylist(), circuits["summary"].to_pylist(),
                 circuits["status"].to_pylist(), strict=True)  # fmt: skip
    for i, j, size, summary, state in fields:
        if i is None or j is None:
            continue
        place = i * k + j
        status[place] = state or ""
        if state == "ok" and size is not None:
            edges[place] = min(size, 65534)
            summaries[place] = summary or ""
    return edges, summaries, status


def _curves(frontier: Frontier, trials: Any, omitted: list[str]) -> dict[str, Any]:
    """Learning curves, thinned: trial numbers, where each begins, and points (share of the tokens, losses)."""
    curves = frontier.curves()
    if not len(curves):
        return {"trials": [], "starts": [0], "tokens": floats([]), "train": floats([]), "val": floats([])}
    owner = places(curves, trials).to_numpy(zero_copy_only=False)
    tokens, train, val = (
        curves[name].to_numpy(zero_copy_only=False).astype(float) for name in ("tokens", "train_loss", "val_loss")
    )
    numbers, starts, kept = [], [0], []
    known = np.flatnonzero(~np.isnan(owner.astype(float)))
    owners = owner[known].astype(int)
    for number in np.unique(owners)[:MOST_CURVES]:
        rows = (
            known[owners == number]
            if len(known) < 20_000
            else known[np.searchsorted(owners, number) : np.searchsorted(owners, number, "right")]
        )
        chosen = rows[thinned(len(rows), CURVE_POINTS)]
        numbers.append(int(number))
        kept.append(chosen)
        starts.append(starts[-1] + len(chosen))
    points = np.concatenate(kept) if kept else np.zeros(0, int)
    if len(curves) > len(points):
        omitted.append(f"Learning curves: up to {CURVE_POINTS} points of each trial")
    return {
        "trials": numbers,
        "starts": starts,
        "tokens": floats(tokens[points]),
        "train": floats(train[points]),
        "val": floats(val[points]),
    }


def _hypervolume(frontier: Frontier) -> list[list[float]]:
    """[trials so far, hypervolume], where it grows."""
    try:
        values = frontier.hypervolume_over_time()["hypervolume"].to_pylist()
    except InputError:
        return []
    changes = [i for i, value in enumerate(values) if i in (0, len(values) - 1) or value > values[i - 1]]
    return (
        [[i + 1, float(values[i])] for i in np.array(changes)[thinned(len(changes), HYPERVOLUME_POINTS)].tolist()]
        if changes
        else []
    )


def _importances(uris: Sequence[str]) -> dict[str, Any]:
    """Of the only study, where there are trials enough."""
    if len(uris) > 1:
        return {"rows": [], "why": "of several studies; ask for a report of one"}
    if _stored(uris[0]) is None:
        return {"rows": [], "why": "no study.yaml is kept with these results, so their space is not known"}
    try:
        rows = importances(optuna_study(uris[0])).to_pylist()
    except (InputError, ValueError) as error:  # rows of another program may have no configuration, or another
        why = str(error) if isinstance(error, InputError) else "the trials' configurations cannot be read"
        return {"rows": [], "why": why}
    return {"rows": [{key: value for key, value in row.items() if not _nan(value)} for row in rows], "why": ""}


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def page_name(study: str, trial: str, circuit: str, several: bool) -> str:
    """Address of a circuit's page, from the report's folder."""
    return "/".join(
        ["circuits", *([storage.safe_name(study)] if several else []), storage.safe_name(trial), f"{circuit}.html"]
    )
