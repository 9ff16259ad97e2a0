"""`sweeps frontier`: query, compare and draw."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from sparse_model.errors import InputError
from sweeps.frontier.compaction import compact_rows
from sweeps.frontier.queries import Frontier, Selection
from sweeps.show.plot import image_format, plot_frontier
from sweeps.show.text import Format, any_table, encoded, frontier_table, matched_table, terminal

Uris = Annotated[
    list[str], typer.Argument(metavar="URI...", help="studies' folders or URIs, e.g. ./results/quickstart")
]


def frontier_command(
    uris: Uris,
    form: Annotated[Format, typer.Option("--format", help="of the answer on standard output")] = "table",
    where: Annotated[
        str | None, typer.Option(help="only trials for which this SQL condition holds, e.g. \"kind = 'sparse'\"")
    ] = None,
    sql: Annotated[str | None, typer.Option(help="any DuckDB query over the tables trials and circuits")] = None,
    target: Annotated[
        float | None, typer.Option(help="task loss of the circuits, in nats; the study's first target if left out")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="compare on these tasks, e.g. if_equals,var_if; all if left out")
    ] = None,
    method: Annotated[str | None, typer.Option(help="circuits of this method (node, edge, faithful)")] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="only the Pareto front, lowest validation loss first")
    ] = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B", help="edges of two groups (SQL conditions) at equal validation loss, with intervals"
        ),
    ] = None,
    over_time: Annotated[
        bool, typer.Option("--over-time", help="hypervolume after each trial, in order of finishing")
    ] = False,
    plot: Annotated[str | None, typer.Option(help="draw the frontier into this .png, .svg or .pdf file")] = None,
) -> int:
    """Show the trials of studies: losses in nats, circuit size in edges, the Pareto front marked.

    Models that solve different tasks are compared on tasks that all of them solve; the last lines say which.

    \b
    sweeps frontier results/quickstart --where "val_loss < 2.5" --pareto
    sweeps frontier results/quickstart --target 0.15 --tasks if_equals,var_if
    sweeps frontier results/quickstart --compare "kind = 'sparse'" "kind = 'dense'"
    sweeps frontier results/quickstart --sql "select task, min(edges) from circuits group by task" --format csv
    sweeps frontier s3://bucket/a s3://bucket/b --plot both.svg
    """
    _one_of({"--sql": sql, "--compare": compare, "--over-time": over_time, "--pareto": pareto})
    if sql is not None:
        _one_of({"--sql": sql, "--where": where, "--target": target, "--tasks": tasks, "--method": method})
    if plot is not None:
        image_format(plot)
    found = Frontier(*uris)
    names = [name.strip() for name in tasks.split(",")] if tasks is not None else None
    choice: Selection = {"where": where, "target": target, "tasks": names, "method": method}
    if sql is not None:
        _put(found.sql(sql), form)
    elif compare is not None:
        _put_matched(found, compare, choice, form)
    elif over_time:
        _put(found.hypervolume_over_time(**choice), form)
    elif form != "table":
        _put(found.pareto(**choice) if pareto else found.compared(**choice).table(), form)
    else:
        console = terminal()
        title = f"Frontier of {' and '.join(uris)} · hypervolume {found.hypervolume(**choice):.3f}"
        console.print(frontier_table(found.compared(**choice), title, console.width, only_front=pareto))
    if plot is not None:
        plot_frontier(found, plot, **choice)
    return 0


def compact_command(uris: Uris) -> int:
    """Join the small files of studies' rows, a table into one file each; a study that ends does so by itself.

    Safe while studies run. Columns that this version does not know are kept; other programs' files stay as they are.
    """
    Frontier(*uris)
    for uri in uris:
        done = compact_rows(uri)
        for one in done:
            terminal().print(f"{uri}: {one.files} files of {one.table} are one now ({one.rows} rows)", soft_wrap=True)
        if not done:
            terminal().print(f"{uri}: nothing to join", soft_wrap=True)
    return 0


def _one_of(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)}: one of them")


def _put(answer: Any, form: Format) -> None:
    if form == "table":
        terminal().print(any_table(answer))
    else:
        sys.stdout.buffer.write(encoded(answer, form))


def _put_matched(found: Frontier, groups: tuple[str, str], choice: Selection, form: Format) -> None:
    answer = found.matched(*groups, **choice)
    if form == "table":
        console = terminal()
        console.print(f"Edges at equal validation loss: A where {groups[0]}, B where {groups[1]}")
        console.print(matched_table(answer))
        console.print("all: mean over the common losses · intervals: bootstrap over tasks and seeds")
        console.print(found.between(*groups, **choice).note())
    else:
        _put(answer, form)
