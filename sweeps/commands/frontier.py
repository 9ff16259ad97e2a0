"""`sweeps frontier`: query and draw."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from sparse_model.errors import InputError
from sweeps.frontier import Frontier
from sweeps.plot import plot_frontier
from sweeps.table import Format, any_table, encoded, frontier_table, terminal


def frontier(
    uri: Annotated[str, typer.Argument(help="a study's folder or URI, e.g. ./results/quickstart")],
    form: Annotated[Format, typer.Option("--format", help="of the answer on standard output")] = "table",
    where: Annotated[
        str | None, typer.Option(help="only trials for which this SQL condition holds, e.g. \"kind = 'sparse'\"")
    ] = None,
    sql: Annotated[str | None, typer.Option(help="any DuckDB query over the tables trials and circuits")] = None,
    plot: Annotated[str | None, typer.Option(help="draw the frontier into this .png, .svg or .pdf file")] = None,
) -> int:
    """Show the trials of a study: losses in nats, circuit size in edges, the Pareto front marked."""
    if where is not None and sql is not None:
        raise InputError("--where and --sql: one of them")
    found = Frontier(uri)
    answer = _answer(found, where, sql)
    if form != "table":
        sys.stdout.buffer.write(encoded(answer, form))
    elif sql is not None:
        terminal().print(any_table(answer))
    else:
        front = set(found.pareto()["trial"].to_pylist())
        console, volume = terminal(), found.hypervolume()
        console.print(frontier_table(answer, front, f"Frontier of {uri} · hypervolume {volume:.3f}", console.width))
    if plot is not None:
        plot_frontier(found, plot)
    return 0


def _answer(found: Frontier, where: str | None, sql: str | None) -> Any:
    if sql is not None:
        return found.sql(sql)
    return found.trials() if where is None else found.where(where)
