"""`sweeps search`: what a study's search has learnt."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sweeps.search.importances import importances, optuna_study
from sweeps.show.slices import plot_slices
from sweeps.show.text import Format, any_table, encoded, terminal


def search_command(
    uri: Annotated[str, typer.Argument(help="a study's folder or URI, e.g. ./results/quickstart")],
    form: Annotated[Format, typer.Option("--format", help="of the answer on standard output")] = "table",
    slice_: Annotated[
        str | None,
        typer.Option("--slice", help="draw loss and edges over each parameter into this .png, .svg or .pdf"),
    ] = None,
) -> int:
    """Show what share of the spread of loss and of circuit size each parameter explains by itself, by kind of trial.

    \b
    sweeps search results/quickstart
    sweeps search results/quickstart --slice slices.png
    """
    study = optuna_study(uri)
    if slice_ is not None:
        plot_slices(study, slice_)
    answer = importances(study)
    if form == "table":
        terminal().print(any_table(answer))
    else:
        sys.stdout.buffer.write(encoded(answer, form))
    return 0
