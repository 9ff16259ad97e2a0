"""The capability-interpretability frontier of one or more studies: rows, queries, the Pareto front, what it covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.frontier.comparison import CIRCUIT_COLUMNS, Array, Comparison, compare, places
from sweeps.frontier.matched import block_between, matched
from sweeps.frontier.pareto import dominated_area, growing_area
from sweeps.frontier.parquet import read_table, row_files
from sweeps.frontier.rows import TABLES, table_uri
from sweeps.frontier.sql import query_tables

REFERENCE = (4.0, 1e5)
"""Default reference point of the hypervolume: validation loss in nats, circuit edges."""


class Selection(TypedDict, total=False):
    """What is compared: trials for which an SQL condition holds, circuits of one target loss, tasks and method."""

    where: str | None
    target: float | None
    tasks: Sequence[str] | None
    method: str | None


class Frontier:
    """The rows below one or more studies' folders. Every method reads what is there now; studies may be running."""

    def __init__(self, *places: storage.PathOrURI, may_be_empty: bool = False) -> None:
        """Studies' folders, e.g. `./results/quickstart`; InputError where no trial has a row, unless that `may_be` and
        it is a study's."""
        self.uris = uris = tuple(map(storage.as_uri, places))
        self._read: dict[tuple[Any, ...], tuple[dict[str, str], Any]] = {}
        for i, uri in enumerate(uris):
            begun = may_be_empty and storage.exists(storage.join(uri, "study.yaml"))
            if not row_files(uri, "trials") and not begun:
                raise InputError(f"{uri}: no frontier here{_hint(uri)}")
            if uri in uris[:i]:
                raise InputError(f"{uri}: is there twice")

    def trials(self) -> Any:
        """One row per trial (`rows.TRIAL_SCHEMA`) as a `pyarrow.Table`, in the order of suggestion.

        InputError where two of the folders hold rows of the same study and trial.
        """
        trials = self._table("trials").sort_by([("study", "ascending"), ("trial", "ascending")])
        if len(self.uris) > 1:
            pairs = trials.group_by(["study", "trial"]).aggregate([([], "count_all")])
            twice = pairs.filter(pc.greater(pairs["count_all"], 1)).to_pylist()
            if twice:
                raise InputError(f"trial {twice[0]['trial']} of study {twice[0]['study']} is in several of the folders")
        return trials

    def circuits(self, columns: Sequence[str] | None = None) -> Any:
        """One row per trial, task, target loss and method (`rows.CIRCUIT_SCHEMA`) as a `pyarrow.Table`."""
        order = [(name, "ascending") for name in ("study", "trial", "task") if columns is None or name in columns]
        return self._table("circuits", columns).sort_by(order)

    def curves(self) -> Any:
        """Learning curves: a row per trial and logged step (`sweeps.rows.CURVE_SCHEMA`) as a `pyarrow.Table`."""
        return self._table("curves").sort_by([(name, "ascending") for name in ("study", "trial", "step")])

    def where(self, condition: str) -> Any:
        """Trials for which an SQL condition holds, e.g. `kind = 'sparse' AND val_loss < 2`; InputError for none."""
        if not condition.strip():
            raise InputError("where: ''; allowed: an SQL condition, e.g. \"kind = 'sparse'\"")
        return self.sql(f"SELECT * FROM trials WHERE {condition} ORDER BY study, trial")

    def sql(self, query: str) -> Any:
        """The answer of DuckDB to one query over the tables `trials` and `circuits`.

        The query sees these tables and nothing else: no files, no network. InputError if DuckDB refuses it.
        """
        return query_tables(query, {"trials": self.trials, "circuits": self.circuits})

    def compared(self, **choice: Unpack[Selection]) -> Comparison:
        """The trials compared like with like (`comparison.py`): all eligible ones, unless `choice` says less.

        `choice`: where, target, tasks, method, each as in `Selection`.
        """
        return self._compared(self._selected(choice), choice)

    def pareto(self, **choice: Unpack[Selection]) -> Any:
        """The non-dominated compared trials, from the lowest validation loss on, with their `edges`."""
        table = self.compared(**choice).table()
        return table.filter(table["on_front"]).sort_by("val_loss")

    def hypervolume(self, reference: tuple[float, float] | None = None, **choice: Unpack[Selection]) -> float:
        """Area dominated by the compared trials, in nats times decades (validation loss × log10 of edges).

        `reference` is the worst (validation loss, edges) that counts, `REFERENCE` if left out: a fixed one, so that
        studies on the same text can be compared.
        """
        return dominated_area(_decades(self.compared(**choice).points), _reference(reference))

    def hypervolume_over_time(self, reference: tuple[float, float] | None = None, **choice: Unpack[Selection]) -> Any:
        """A row per compared trial in order of finishing: finished, study, trial, trials so far, hypervolume so far.

        The tasks compared on are those of the whole set, so that the figure only grows. Rows older than the column
        `finished` come first, in order of suggestion.
        """
        comparison = self.compared(**choice)
        trials = comparison.trials.select(["finished", "study", "trial"]).filter(pa.array(comparison.compared))
        placed = trials.append_column("known", pc.is_valid(trials["finished"]))  # unknown times come first
        placed = placed.append_column("place", pa.array(np.arange(len(trials))))
        order = pc.sort_indices(placed, sort_keys=[(name, "ascending") for name in ("known", "finished", "place")])
        points = _decades(comparison.points)[order.to_numpy()]
        return (
            trials.take(order)
            .append_column("trials", pa.array(np.arange(1, len(trials) + 1)))
            .append_column("hypervolume", pa.array(growing_area(points, _reference(reference)), pa.float64()))
        )

    def matched(self, first: str, second: str, **choice: Unpack[Selection]) -> Any:
        """Edges of two groups of trials, given as SQL conditions, at equal validation loss (`matched.py`)."""
        comparison = self.between(first, second, **choice)
        return matched(comparison, [(name, self._inside(name, comparison.trials)) for name in (first, second)])

    def between(self, first: str, second: str, **choice: Unpack[Selection]) -> Comparison:
        """The trials of two groups, given as SQL conditions, on the tasks that `matched` compares them on."""
        trials = self._selected(choice)
        groups = [self._inside(condition, trials) for condition in (first, second)]
        if both := int((groups[0] & groups[1]).sum()):
            raise InputError(f"compare: {both} trials are in both groups ({first}; {second})")
        either = groups[0] | groups[1]
        trials = trials.filter(pa.array(either))
        members = [group[either] for group in groups]
        return self._compared(trials, choice, lambda solved: block_between(trials, members, solved))

    def _selected(self, choice: Selection) -> Any:
        if unknown := choice.keys() - Selection.__annotations__.keys():
            raise TypeError(f"{', '.join(unknown)}: no such choice; allowed: {', '.join(Selection.__annotations__)}")
        condition = choice.get("where")
        return self.trials() if condition is None else self.where(condition)

    def _compared(
        self, trials: Any, choice: Selection, choose: Callable[[Array], list[int]] | None = None
    ) -> Comparison:
        circuits = self._table("circuits", CIRCUIT_COLUMNS)
        return compare(trials, circuits, choice.get("target"), choice.get("tasks"), choice.get("method"), choose)

    def _inside(self, condition: str, trials: Any) -> Array:
        """(N) for which of the trials an SQL condition holds."""
        return np.isin(np.arange(len(trials)), places(self.where(condition), trials).drop_null().to_numpy())

    def _table(self, name: str, columns: Sequence[str] | None = None) -> Any:
        tables = [self._unchanged(uri, name, columns) for uri in self.uris]
        return pa.concat_tables(tables) if tables else TABLES[name].empty_table()

    def _unchanged(self, uri: str, name: str, columns: Sequence[str] | None) -> Any:
        """A table of one study, read again only when one of its files has changed."""
        key = (uri, name, columns and tuple(columns))
        marks = storage.versions(table_uri(uri, name), True)
        if key not in self._read or self._read[key][0] != marks:
            self._read[key] = (marks, read_table(uri, name, columns))
        return self._read[key][1]


def _reference(reference: tuple[float, float] | None) -> tuple[float, float]:
    loss, edges = reference or REFERENCE
    if not edges > 0:
        raise InputError(f"reference {reference}: the number of edges must be above 0")
    return loss, math.log10(edges)


def _decades(points: Any) -> Any:
    return np.stack([points[:, 0], np.log10(points[:, 1])], axis=1)


def _hint(uri: str) -> str:
    studies = [name for name in storage.listdir(uri) if storage.listdir(table_uri(storage.join(uri, name), "trials"))]
    return f"; studies below it: {', '.join(studies)}" if studies else ", or no trial of it is finished yet"
