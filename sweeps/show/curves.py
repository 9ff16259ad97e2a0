"""Circuit size against task loss: the mean curve over tasks of two models, or of several ways to order nodes.

A mean at a target loss is over the tasks of which everything compared has a circuit that counts there
(`sweeps.frontier.counting`), so that all means are of the same tasks.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.frontier.comparison import NOW
from sweeps.frontier.counting import counted
from sweeps.frontier.parquet import read_table
from sweeps.search.objectives import bootstrap_interval, geometric_mean_edges
from sweeps.show.plot import FAINT, INK, image_format

TARGETS = (0.5, 0.3, 0.15, 0.08, 0.04, 0.02, 0.01, 0.005, 0.002)
"""Task losses of the paper's figure 2, in nats."""

COLORS = ("#0b6e99", "#c8553d", "#6b8e23", "#7d5ba6", "#d4a017", "#8c8c8c")
MARKERS = ("o", "s", "^", "D", "P", "v")

Interval = tuple[float, float] | None

Curve = Mapping[float, Any]
"""Target loss -> edges, None or missing where no circuit counts; or share of edges -> faithfulness."""

Sizes = Mapping[str, Curve]
"""Task -> curve."""


class Point(NamedTuple):
    """Of one target loss: by curve, the edges of each task that all curves reach there."""

    target: float
    edges: dict[str, tuple[float, ...]]

    @property
    def tasks(self) -> int:
        """How many tasks that is."""
        return len(next(iter(self.edges.values())))

    @property
    def means(self) -> dict[str, float]:
        """Each curve's geometric mean of edges over the tasks."""
        return {name: geometric_mean_edges(edges) or 1.0 for name, edges in self.edges.items()}

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 % bootstrap interval of each mean, over tasks."""
        return {name: bootstrap_interval(edges) for name, edges in self.edges.items()}

    @property
    def ratio(self) -> tuple[float, Interval]:
        """Geometric mean over tasks of the second curve's edges over the first's, and its 95 % bootstrap interval."""
        first, second = list(self.edges.values())[:2]
        means = list(self.means.values())
        return means[1] / means[0], bootstrap_interval([b / a for a, b in zip(first, second, strict=True)])


def sizes_of(rows: Sequence[Mapping[str, Any]], method: str) -> dict[str, dict[float, int | None]]:
    """Sizes of circuits that count (`sweeps.frontier.counting`), from rows of the circuits table."""
    found: dict[str, dict[float, int | None]] = {}
    for row in rows:
        if row["method"] == method and counted(row):
            found.setdefault(row["task"], {})[row["target_loss"]] = row["edges"]
    return found


def mean_curves(curves: Mapping[str, Sizes], targets: Sequence[float]) -> list[Point]:
    """One point for each target that every curve reaches on some task, from the loosest on."""
    points = []
    for target in sorted(targets, reverse=True):
        reached = [{t for t, sizes in curve.items() if sizes.get(target) is not None} for curve in curves.values()]
        tasks = sorted(set.intersection(*reached))
        if tasks:
            edges = {name: tuple(curve[task][target] or 0 for task in tasks) for name, curve in curves.items()}
            points.append(Point(target, edges))
    return points


def rows_of_model(model_uri: str, table: str = "circuits") -> list[dict[str, Any]]:
    """Rows of a trial whose model is at <study>/models/<trial>; none where it is not a trial's, or where they are of an
    earlier schema, which had other tasks and other words for what is solved, or of another search."""
    parts = model_uri.split("?")[0].rstrip("/").rsplit("/", 2)
    if len(parts) != 3 or parts[1] != "models" or "?" in model_uri:
        return []
    root, trial = parts[0], parts[2]
    rows: list[dict[str, Any]] = read_table(root, table).to_pylist()
    return [row for row in rows if row["trial"] == trial and (row["schema_version"], row["search_version"]) == NOW]


def model_names(uris: Sequence[str]) -> list[str]:
    """What models are, e.g. `sparse · 128 · 0.06` (width, share of weights kept), as far as a trial's row tells; else
    the name of the folder. Names that would be the same have the folder's beside them, and then the whole address."""
    keys = [uri.split("?")[0].rstrip("/").rsplit("/", 1)[-1] for uri in uris]
    names = [_described(rows_of_model(uri, "trials")) or key for uri, key in zip(uris, keys, strict=True)]
    for others in (keys, list(uris)):
        names = [f"{n} · {o}" if names.count(n) > 1 and o != n else n for n, o in zip(names, others, strict=True)]
    return names


def _described(rows: Sequence[Mapping[str, Any]]) -> str | None:
    if not rows or rows[0]["kind"] is None or rows[0]["d_model"] is None:
        return None
    row = rows[0]
    share = f" · {row['fraction']:.2g}" if row["kind"] == "sparse" and row["fraction"] is not None else ""
    return f"{row['kind']} · {row['d_model']}{share}"


def plot_curves(panels: Mapping[str, Sequence[Point]], uri: str, title: str) -> None:
    """Draw mean curves, one panel per method, into an image that ends in .png, .svg or .pdf; InputError for others."""
    form = image_format(uri)
    buffer = io.BytesIO()
    draw_curves(panels, title).savefig(buffer, format=form, dpi=160, facecolor="white")
    storage.write_bytes_atomic(uri, buffer.getvalue())


def draw_curves(panels: Mapping[str, Sequence[Point]], title: str) -> Figure:
    """The picture as a matplotlib figure: stricter losses to the right."""
    if not any(panels.values()):
        raise InputError("no task reaches any of the target losses with all that is compared: nothing to draw")
    figure = Figure(figsize=(3 + 5.2 * len(panels), 4.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (method, points) in zip(axes, panels.items(), strict=True):
        _panel(panel, method, points)
    axes[0].set_ylabel("circuit edges (geometric mean over tasks)", color=INK)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside right upper")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    figure.supxlabel(
        "Beside each target: tasks that all curves reach there, over which the mean is. "
        "Shaded: 95 % bootstrap interval over tasks.", fontsize=8, color=FAINT,
        x=0.01, ha="left",
    )  # fmt: skip
    return figure


def _panel(axes: Axes, method: str, points: Sequence[Point]) -> None:
    names = list(points[0].means) if points else []
    for i, name in enumerate(names):
        x, y = [point.target for point in points], [max(1, point.means[name]) for point in points]
        low, high = zip(*(point.intervals[name] or (y[n], y[n]) for n, point in enumerate(points)), strict=True)
        axes.fill_between(x, low, high, color=COLORS[i], alpha=0.12, linewidth=0)
        axes.plot(x, y, color=COLORS[i], marker=MARKERS[i], linewidth=1.8, markersize=6, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xticks([point.target for point in points], [f"{p.target:g}\n({p.tasks})" for p in points], fontsize=8)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("task loss (nats)", color=INK)
    title = "faithful" if method == "faithful" else f"{method}-pruned"
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
