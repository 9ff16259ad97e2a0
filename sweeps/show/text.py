"""Frontier rows as text: a table for people, CSV, JSON or Parquet for programs."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparse_model.errors import InputError
from sweeps.frontier.comparison import Comparison

Format = Literal["table", "csv", "json", "parquet"]

WIDTH = 110
"""Columns of text where there is no terminal to ask."""

COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "trial": ("trial", str),
    "kind": ("kind", str),
    "d_model": ("width", str),
    "fraction": ("fraction", "{:.3g}".format),
    "l0": ("L0", "{:,}".format),
    "val_loss": ("val loss", "{:.3f}".format),
    "tasks_solved": ("solved", str),
    "edges": ("edges", "{:,.1f}".format),
    "tasks_without_edges": ("no edge", str),
    "tasks_failing_heldout": ("fail", str),
    "train_seconds": ("train s", "{:.0f}".format),
    "prune_seconds": ("prune s", "{:.0f}".format),
    "status": ("status", str),
}
"""What the table in the terminal shows of a trial, under which heading, written how."""


LEAST_WIDTH = {"train_seconds": 118, "prune_seconds": 118, "status": 102, "tasks_failing_heldout": 94}
"""Columns of text below which a column is left out."""

MOST_ROWS = 100
"""Trials in a table for people; of more, only the Pareto front is shown."""


def terminal() -> Console:
    """Standard output, wide enough for the table if it is a file. Brackets and colons in a name are no markup."""
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=WIDTH)


def frontier_table(comparison: Comparison, title: str, width: int, *, only_front: bool = False) -> Table:
    """Compared trials for `width` columns of text, those on the Pareto front marked."""
    trials, note = comparison.table(), f"* Pareto front · losses in nats · {comparison.note()}"
    if len(trials) > MOST_ROWS and not only_front:
        only_front = True
        note += f" · {len(trials):,} trials: only the front is shown, --format csv gives all"
    if only_front:
        trials = trials.filter(trials["on_front"]).sort_by("val_loss")
    shown = {name: column for name, column in COLUMNS.items() if width >= LEAST_WIDTH.get(name, 0)}
    table = Table(title=plain(title), caption=plain(note), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    for heading, _ in shown.values():
        words = heading in ("trial", "kind", "status")
        table.add_column(heading, justify="left" if words else "right", no_wrap=True)
    for row in trials.to_pylist():
        cells = ["–" if row[name] is None else write(row[name]) for name, (_, write) in shown.items()]
        mark, style = ("*", "bold") if row["on_front"] else (" ", None)
        table.add_row(*map(plain, (f"{mark} {cells[0]}", *cells[1:])), style=style)
    return table


def matched_table(answer: Any) -> Table:
    """The answer of `Frontier.matched` for the terminal, its groups called A and B."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("val loss", "edges A", "edges B", "B / A", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in answer.to_pylist():
        table.add_row(
            "all" if row["val_loss"] is None else f"{row['val_loss']:.3f}",
            f"{row['edges_first']:,.1f}",
            f"{row['edges_second']:,.1f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_low']:.2f} – {row['ratio_high']:.2f}",
        )
    return table


def any_table(answer: Any) -> Table:
    """Any Arrow table for the terminal."""
    table = Table()
    for name in answer.column_names:
        table.add_column(plain(name))
    for row in zip(*(column.to_pylist() for column in answer.columns), strict=True):
        table.add_row(*(plain(_cell(value)) for value in row))
    return table


def plain(text: str) -> Text:
    """Text as it is: no brackets of it are markup, and nothing in it commands the terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def encoded(answer: Any, form: Format) -> bytes:
    """An Arrow table as the bytes of a CSV, JSON (a list of objects; numbers that are none are null) or Parquet file.

    InputError for columns that the format has no place for.
    """
    buffer = io.BytesIO()
    try:
        if form == "csv":
            pyarrow.csv.write_csv(answer, buffer)
        elif form == "parquet":
            pyarrow.parquet.write_table(answer, buffer)
        else:
            assert form == "json", form
            rows = _finite(answer.to_pylist())
            buffer.write(json.dumps(rows, indent=1, default=str, allow_nan=False).encode() + b"\n")
    except pa.ArrowException as error:
        raise InputError(f"--format {form}: {' '.join(str(error).split())}; cast such columns in the query") from None
    return buffer.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
