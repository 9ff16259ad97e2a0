"""The capability-interpretability frontier of a study: its rows, the non-dominated ones, the area they cover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.rows import SCHEMA_VERSION, TABLES, table_uri

REFERENCE = (4.0, 1e5)
"""Default reference point of the hypervolume: validation loss in nats, circuit edges."""


class Frontier:
    """The rows below a study's folder. Every method reads what is there now; a study may still be running."""

    def __init__(self, uri: str) -> None:
        """`uri` is the study's folder, e.g. `./results/quickstart`; InputError where no trial has a row."""
        self.uri = uri
        if not storage.listdir(table_uri(uri, "trials")):
            raise InputError(f"{uri}: no frontier here{_hint(uri)}")

    def trials(self) -> Any:
        """One row per trial (`sweeps.rows.TRIAL_SCHEMA`) as a `pyarrow.Table`, in the order of suggestion."""
        return self._table("trials").sort_by("trial")

    def circuits(self) -> Any:
        """One row per trial, task and target loss (`sweeps.rows.CIRCUIT_SCHEMA`) as a `pyarrow.Table`."""
        return self._table("circuits").sort_by([("trial", "ascending"), ("task", "ascending")])

    def where(self, condition: str) -> Any:
        """Trials for which an SQL condition holds, e.g. `kind = 'sparse' AND val_loss < 2`."""
        return self.sql(f"SELECT * FROM trials WHERE {condition} ORDER BY trial")

    def sql(self, query: str) -> Any:
        """The answer of DuckDB to a query over the tables `trials` and `circuits`; InputError if it refuses."""
        with duckdb.connect() as connection:
            connection.register("trials", self.trials())
            connection.register("circuits", self.circuits())
            try:
                return connection.sql(query).to_arrow_table()
            except (duckdb.Error, AttributeError) as error:  # a statement without a result has no table
                raise InputError(f"sql: {' '.join(str(error).split())}") from None

    def eligible(self) -> Any:
        """Trials that may stand on the frontier: they ended well and solved enough tasks."""
        trials = self.trials()
        return trials.filter(trials["eligible"])

    def pareto(self) -> Any:
        """The non-dominated eligible trials, both figures to be small, from the lowest validation loss on."""
        trials = self.eligible()
        keep = non_dominated(_points(trials))
        return trials.take(pa.array(keep, pa.int64())).sort_by("val_loss")

    def hypervolume(self, reference: tuple[float, float] | None = None) -> float:
        """Area dominated by the eligible trials, in nats times decades (validation loss × log10 of edges).

        `reference` is the worst (validation loss, edges) that counts, `REFERENCE` if left out: a fixed one, so that
        studies on the same text can be compared.
        """
        points = [(loss, max(1.0, edges)) for loss, edges in _points(self.eligible())]
        reference = reference or REFERENCE
        if not reference[1] > 0:
            raise InputError(f"reference {reference}: the number of edges must be above 0")
        return dominated_area([(loss, math.log10(edges)) for loss, edges in points], _logarithmic(reference))

    def _table(self, name: str) -> Any:
        fs, path = storage.filesystem(table_uri(self.uri, name))
        files = [f"{path}/{file}" for file in storage.listdir(table_uri(self.uri, name)) if file.endswith(".parquet")]
        if not files:
            return TABLES[name].empty_table()
        try:
            table = ds.dataset(files, schema=TABLES[name], filesystem=fs, format="parquet").to_table()
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.uri}: rows that cannot be read ({' '.join(str(error).split())})") from None
        newest = max((version for version in table["schema_version"].to_pylist() if version), default=SCHEMA_VERSION)
        if newest > SCHEMA_VERSION:
            raise InputError(f"{self.uri}: rows of schema {newest}; this version reads up to {SCHEMA_VERSION}")
        return table


def non_dominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of points that no other betters in one figure without being worse in the other; equals all stay."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    keep: list[int] = []
    for i in order:
        if not keep or points[i][1] < points[keep[-1]][1] or points[i] == points[keep[-1]]:
            keep.append(i)
    return keep


def dominated_area(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area between the points and a reference point that is worse than they are; points beyond it add nothing."""
    area, ceiling = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return area


def _points(trials: Any) -> list[tuple[float, float]]:
    return list(zip(trials["val_loss"].to_pylist(), trials["circuit_edges"].to_pylist(), strict=True))


def _logarithmic(point: tuple[float, float]) -> tuple[float, float]:
    return point[0], math.log10(point[1])


def _hint(uri: str) -> str:
    studies = [name for name in storage.listdir(uri) if storage.listdir(table_uri(storage.join(uri, name), "trials"))]
    return f"; studies below it: {', '.join(studies)}" if studies else ", or no trial of it is finished yet"
