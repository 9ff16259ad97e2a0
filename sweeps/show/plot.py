"""The picture of a frontier: validation loss against circuit size, the non-dominated trials joined."""

from __future__ import annotations

import io
from textwrap import fill
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import textalloc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.frontier.comparison import Comparison
from sweeps.frontier.queries import Frontier, Selection

LOOKS = {"sparse": ("o", "#0b6e99"), "dense": ("s", "#c8553d")}
INK, FAINT = "#222222", "#9a9a9a"
MOST_LABELS = 8
"""Trials of a kind beyond which labels would hide the points."""
CROWD = 300
"""Trials of a kind beyond which points are small, and under the front."""
FORMATS = ("png", "svg", "pdf")


def plot_frontier(frontier: Frontier, uri: storage.PathOrURI, **choice: Unpack[Selection]) -> None:
    """Draw a frontier into an image at a path or URI that ends in .png, .svg or .pdf; InputError for any other.

    `choice` says what is compared, as in `Frontier.compared`.
    """
    uri = storage.as_uri(uri)
    form = image_format(uri)
    buffer = io.BytesIO()
    draw(frontier.compared(**choice)).savefig(buffer, format=form, dpi=160, facecolor="white")
    storage.write_bytes_atomic(uri, buffer.getvalue())


def image_format(uri: str) -> str:
    """The format that the ending of a path or URI asks for; InputError where it is none of `FORMATS`."""
    form = uri.split("?")[0].rsplit(".", 1)[-1].lower()
    if form not in FORMATS:
        raise InputError(f"plot {uri}; allowed endings: {', '.join('.' + name for name in FORMATS)}")
    return form


def draw(comparison: Comparison) -> Figure:
    """The picture as a matplotlib figure; trials that are not compared are counted below it, not drawn."""
    table = comparison.table()
    shown = table.filter(pa.array(comparison.compared)).to_pylist()
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.subplots()
    _front(axes, sorted((row for row in shown if row["on_front"]), key=lambda row: row["val_loss"]))
    for kind in LOOKS:
        _trials(axes, [row for row in shown if row["kind"] == kind], kind)
    _dress(axes, shown)
    few = [rows for kind in LOOKS if 0 < len(rows := [row for row in shown if row["kind"] == kind]) <= MOST_LABELS]
    names = [name or "?" for name in pc.unique(table["study"]).to_pylist()]
    title = f"Capability and interpretability: {', '.join(names)}"
    axes.set_title(title, loc="left", fontsize=13, color=INK, pad=12)
    labels = "Beside each trial: width · share of weights kept · tasks it solves. " if few else ""
    caption = fill(f"{labels}{comparison.note()}.", 130)
    figure.supxlabel(caption, fontsize=8, color=FAINT, x=0.01, ha="left")
    if few:
        _labels(figure, axes, [row for rows in few for row in rows], shown)
    return figure


def _trials(axes: Axes, rows: list[dict[str, Any]], kind: str) -> None:
    marker, color = LOOKS[kind]
    x, y = _points(rows)
    label, crowd = f"{kind} (n = {len(rows):,})", len(rows) > CROWD
    looks = {"s": 8, "alpha": 0.4, "linewidth": 0} if crowd else {"s": 70, "edgecolor": "white", "linewidth": 1.2}
    axes.scatter(x, y, marker=marker, color=color, zorder=1 if crowd else 3, label=label, rasterized=crowd, **looks)


def _labels(figure: Figure, axes: Axes, rows: list[dict[str, Any]], shown: list[dict[str, Any]]) -> None:
    """Beside each of `rows` what distinguishes it, where that hides no trial `shown`, no other label and no front."""
    figure.draw_without_rendering()  # what room there is, the layout decides
    (x, y), (every_x, every_y) = _points(rows), _points(shown)
    stairs = [np.array(line.get_data()) for line in axes.lines]
    textalloc.allocate(
        axes, x, y, [_label(row) for row in rows], textsize=7, textcolor=[LOOKS[row["kind"]][1] for row in rows],
        x_scatter=every_x, y_scatter=every_y, min_distance=0.02, max_distance=0.1,
        x_lines=[xs for xs, _ in stairs], y_lines=[ys for _, ys in stairs], linecolor=FAINT, linewidth=0.6,
    )  # fmt: skip
    for text in axes.texts:
        text.set_in_layout(False)  # else one outside moves the axes
    figure.draw_without_rendering()
    for text in axes.texts:
        _inside(axes, text)


def _inside(axes: Axes, text: Text) -> None:
    """Move a label that leaves the axes, as those beside the outermost trials may, back to their edge."""
    label, box = text.get_window_extent(), axes.get_window_extent()
    right = min(0.0, box.x1 - label.x1) + max(0.0, box.x0 - label.x0)
    up = min(0.0, box.y1 - label.y1) + max(0.0, box.y0 - label.y0)
    if right or up:
        x, y = axes.transData.transform(text.get_position())
        text.set_position(tuple(axes.transData.inverted().transform((x + right, y + up))))


def _points(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["val_loss"] for row in rows], [max(1, row["edges"]) for row in rows]


def _label(row: dict[str, Any]) -> str:
    """What distinguishes a trial: its width, how sparse it is, how many tasks it solves."""
    share = f" · {row['fraction']:.2g}" if row["kind"] == "sparse" and row["fraction"] is not None else ""
    tried = "" if row["tasks_tried"] is None else f"/{row['tasks_tried']}"
    return f"{row['d_model']}{share} · {row['tasks_solved']}{tried}"


def _front(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """The staircase through the non-dominated trials: what lies above and right of it is bettered by one of them."""
    if rows:
        x, y = _points(rows)
        label = f"Pareto front ({len(x)})"
        stairs = np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]
        axes.plot(*stairs, color=INK, linewidth=1.4, alpha=0.75, zorder=2, label=label)


def _dress(axes: Axes, shown: list[dict[str, Any]]) -> None:
    if shown:
        _scale(axes, [max(1, row["edges"]) for row in shown])
    axes.margins(x=0.12)
    axes.set_xlabel("validation loss (nats per token)", color=INK)
    axes.set_ylabel("circuit edges (geometric mean over common tasks)", color=INK)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if shown:
        axes.legend(frameon=False, fontsize=9)
    else:
        axes.text(0.5, 0.5, "no trial to compare yet", transform=axes.transAxes, ha="center", color=FAINT)


def _scale(axes: Axes, edges: list[float]) -> None:
    """A logarithmic axis of edges that shows more than the points, so that small differences look small."""
    axes.set_ylim(max(1, min(edges)) / 1.8, max(1, *edges) * 1.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
