"""Like with like: models that solve different tasks are compared on tasks that all the compared ones solve, with
circuits that count (`sweeps.frontier.counting`): sufficient on held-out pairs, and with an edge.

A geometric mean over the tasks a model happens to solve rewards it for failing the hard ones. So a comparison is of a
set of trials over one set of tasks, each of which all of them solve at one target loss. Unless the tasks are named,
they are chosen so that there is most to compare: pairs of trials × tasks, adding tasks from the most often solved on.

Shapes: N trials, K tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from circuit.search.config import SEARCH_VERSION
from sparse_model.errors import InputError
from sweeps.frontier.pareto import non_dominated
from sweeps.frontier.rows import SCHEMA_VERSION

Array = np.ndarray[Any, Any]
SAME = 1e-6
"""Relative difference of target losses that are the same: other programs write them in 32 bits."""
CIRCUIT_COLUMNS = ("study", "trial", "task", "target_loss", "method", "counted", "edges")
"""Columns of circuits that a comparison needs."""


class Versions(NamedTuple):
    """What rows must share to be compared: the schema, which says what counts, and the search that found circuits."""

    schema: int
    search: int

    def told(self) -> str:
        """A caution about rows that are not of today's; nothing for those that are."""
        if self.schema != SCHEMA_VERSION:
            return f" · rows of schema {self.schema}: other tasks, and another rule of what is solved"
        if self.search != SEARCH_VERSION:
            which = self.search or "unknown"
            return (
                f" · circuits of search {which}, not {SEARCH_VERSION}: `sweeps run` finds them anew with --prune-again"
            )
        return ""


NOW = Versions(SCHEMA_VERSION, SEARCH_VERSION)


@dataclass(frozen=True)
class Comparison:
    """Trials (a `pyarrow.Table`) compared on their common `tasks` at a target loss.

    `log_edges` (N, K): natural logarithm of edges by trial and task, NaN where no circuit counts.
    `compared` (N): which trials have a circuit that counts of all the tasks. `versions` are those of their rows, and
    `of_others` how many trials have rows of others: these are never compared with the rest. Without any circuits there
    are no tasks, and trials are compared by the means they recorded themselves.
    """

    trials: Any
    tasks: tuple[str, ...]
    tasks_there: int
    target: float | None
    log_edges: Array
    compared: Array
    versions: Versions = NOW
    of_others: int = 0

    @cached_property
    def points(self) -> Array:
        """(validation loss, edges) of the compared trials, edges the geometric mean over the common tasks."""
        losses = self.trials["val_loss"].to_numpy()[self.compared]
        return np.stack([losses, np.maximum(1.0, self.edges[self.compared])], axis=1)

    @cached_property
    def edges(self) -> Array:
        """(N) geometric mean of edges over the common tasks, NaN of trials that are not compared."""
        if not self.tasks:
            own = self.trials["circuit_edges"].to_numpy(zero_copy_only=False).astype(float)
            return np.where(self.compared, own, np.nan)
        return np.exp(np.where(self.compared, np.where(self.compared[:, None], self.log_edges, 0).mean(axis=1), np.nan))

    @cached_property
    def on_front(self) -> Array:
        """(N) whether a trial is compared and not dominated."""
        front = np.zeros(len(self.trials), dtype=bool)
        front[np.flatnonzero(self.compared)[non_dominated(self.points)]] = True
        return front

    def table(self) -> Any:
        """The trials with three more columns: `edges` over the common tasks, `compared_tasks`, `on_front`."""
        columns = {
            "edges": pa.array(self.edges, pa.float64(), from_pandas=True),
            "compared_tasks": pa.array(np.where(self.compared, len(self.tasks), 0), pa.int64()),
            "on_front": pa.array(self.on_front),
        }
        table = self.trials
        for name, values in columns.items():
            table = table.append_column(name, values)
        return table

    def note(self) -> str:
        """What was compared, in a sentence or two, for people."""
        n, of = int(self.compared.sum()), len(self.trials)
        if not self.tasks:
            what = "edges: as each trial recorded them, over the tasks it solves itself"
        else:
            which = f": {', '.join(self.tasks)}" if len(self.tasks) < min(6, self.tasks_there) else ""
            what = (
                f"edges: geometric mean over the {len(self.tasks)} tasks (of {self.tasks_there}) that all {n:,} "
                f"compared trials solve at loss {self.target:g}{which}, by circuits that hold on "
                "held-out pairs and have an edge"
            )
        left = f" · {of - n:,} of {of:,} trials are not compared (failed, or do not solve them all)" if of > n else ""
        return f"{what}{left}{self._version_note()}{self._data_note()}"

    def _version_note(self) -> str:
        if not self.of_others:
            return self.versions.told()
        schema, search = self.versions
        return (
            f" · {self.of_others:,} trials are not compared with these, for their rows are of another schema than "
            f"{schema}, or another search than {search}: "
            f'--where "schema_version <> {schema} OR search_version <> {search}" compares them among themselves'
        )

    def _data_note(self) -> str:
        kinds = len(pc.unique(self.trials["data"].filter(pa.array(self.compared))))
        return f" · CAUTION: trained on {kinds} different texts, whose losses are not comparable" if kinds > 1 else ""


def compare(
    trials: Any,
    circuits: Any,
    target: float | None = None,
    tasks: Sequence[str] | None = None,
    method: str | None = None,
    choose: Callable[[Array], list[int]] | None = None,
) -> Comparison:
    """Compare the eligible of `trials` by `circuits` of one target loss and method (both `pyarrow.Table`s).

    `target` is the trials' own if left out, `tasks` those that make the largest comparison, `method` node if there is
    any such circuit. `choose` is told which trials solve which tasks, boolean (N, K), and gives the columns to compare
    on; `largest_block` if left out. InputError for a target, task or method there is none of.
    """
    if isinstance(tasks, str):
        raise InputError(f"tasks {tasks!r}; allowed: a list of names")
    eligible: Array = pc.fill_null(trials["eligible"], False).to_numpy()
    eligible &= np.isfinite(trials["val_loss"].to_numpy(zero_copy_only=False).astype(float))
    versions, same = _newest(trials, eligible)
    of_others = int((eligible & ~same).sum())
    eligible = eligible & same
    circuits = circuits.filter(circuits["counted"])
    if len(circuits) == 0 and target is None and tasks is None and method is None:
        sized = eligible & _has_edges(trials)
        return Comparison(trials, (), 0, None, np.empty((len(trials), 0)), sized, versions, of_others)
    target = _chosen_target(target, trials, circuits)
    circuits = _of_method(circuits.filter(_close(circuits["target_loss"], target)), method)
    names = _asked(tasks, circuits)
    logs = log_edge_matrix(trials, circuits, names)
    solved = ~np.isnan(logs) & eligible[:, None]
    common = list(range(len(names))) if tasks is not None else (choose or largest_block)(solved)
    compared: Array = np.asarray(solved[:, common].all(axis=1)) if common else np.zeros(len(trials), dtype=bool)
    there = len(pc.unique(circuits["task"]))
    named = tuple(names[k] for k in common)
    return Comparison(trials, named, there, target, logs[:, common], compared, versions, of_others)


def _newest(trials: Any, eligible: Array) -> tuple[Versions, Array]:
    """The newest versions of the rows of eligible trials (N), and which trials have rows of these."""
    schema, search = (
        pc.fill_null(trials[name], now).to_numpy()
        for name, now in (("schema_version", SCHEMA_VERSION), ("search_version", SEARCH_VERSION))
    )
    found = set(zip(schema[eligible].tolist(), search[eligible].tolist(), strict=True))
    newest = Versions(*max(found, default=NOW))
    return newest, (schema == newest.schema) & (search == newest.search)


def log_edge_matrix(trials: Any, circuits: Any, tasks: Sequence[str]) -> Array:
    """(N, K) logarithm of edges; NaN where a trial has no circuit of a task."""
    row = places(circuits, trials)
    column = pc.index_in(circuits["task"], value_set=pa.array(tasks, pa.string()))
    known = pc.and_(pc.and_(pc.is_valid(row), pc.is_valid(column)), pc.is_valid(circuits["edges"]))
    logs = np.full((len(trials), len(tasks)), np.nan)
    where = row.filter(known).to_numpy(), column.filter(known).to_numpy()
    logs[where] = np.log(circuits["edges"].filter(known).to_numpy())
    return logs


def largest_block(solved: Array) -> list[int]:
    """Columns of a boolean (N, K) for which pairs of full rows × columns is largest, added from the fullest one on."""
    best, chosen, alive = (0, 0), 0, np.ones(len(solved), dtype=bool)
    order = np.argsort(-solved.sum(axis=0), kind="stable")
    for count, column in enumerate(order, start=1):
        alive &= solved[:, column]
        rows = int(alive.sum())
        if (size := (rows * (rows - 1) * count, rows * count)) > best:
            best, chosen = size, count
    return sorted(int(column) for column in order[:chosen])


def places(rows: Any, trials: Any) -> Any:
    """Of each of the rows of one table, where its trial stands in another; null where it does not.

    Trials are told apart by their key, and by their study where either table has several.
    """
    several = any(len(pc.unique(table["study"])) > 1 for table in (rows, trials))
    return pc.index_in(_identity(rows, several), value_set=_identity(trials, several))


def _identity(table: Any, with_study: bool) -> Any:
    if not with_study:
        return table["trial"].combine_chunks()
    names = pc.fill_null(table["study"], "")
    return pc.binary_join_element_wise(names, table["trial"], "/").combine_chunks()


def _has_edges(trials: Any) -> Array:
    return np.asarray(pc.is_valid(trials["circuit_edges"]).to_numpy())


def _close(column: Any, value: float) -> Any:
    return pc.less_equal(pc.abs(pc.subtract(column, value)), SAME * value)


def _chosen_target(asked: float | None, trials: Any, circuits: Any) -> float:
    there = sorted(value for value in pc.unique(circuits["target_loss"]).to_pylist() if value is not None)
    if asked is not None:
        if not any(abs(value - asked) <= SAME * asked for value in there):
            raise InputError(f"target {asked:g}; there are circuits at {', '.join(f'{v:g}' for v in there) or 'none'}")
        return asked
    own = sorted({value for value in pc.unique(trials["target_loss"]).to_pylist() if value is not None})
    if len(own) > 1:
        raise InputError(f"target: the trials have {', '.join(f'{v:g}' for v in own)}; name one of them")
    return float(own[0] if own else there[0])


def _of_method(circuits: Any, asked: str | None) -> Any:
    there = sorted(value for value in pc.unique(circuits["method"]).to_pylist() if value is not None)
    if asked is not None and asked not in there:
        raise InputError(f"method {asked!r}; there are circuits of {', '.join(there) or 'none'}")
    method = asked or ("node" if "node" in there else there[0] if there else None)
    return circuits if method is None else circuits.filter(pc.equal(circuits["method"], method))


def _asked(tasks: Sequence[str] | None, circuits: Any) -> list[str]:
    there = sorted(value for value in pc.unique(circuits["task"]).to_pylist() if value is not None)
    for task in tasks or ():
        if task not in there:
            raise InputError(f"task {task!r}; solved at this loss: {', '.join(there) or 'none'}")
    return there if tasks is None else list(dict.fromkeys(tasks))
