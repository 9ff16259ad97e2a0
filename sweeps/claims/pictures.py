"""The pictures of docs/results.md that are drawn from landed rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from circuit.search.config import METHODS
from sweeps.claims.ablation import CONTRASTS, FEWER, FRACTION, Ablations, Contrast
from sweeps.claims.fronts import ALL_TARGETS, mismatch, task_edges
from sweeps.claims.intervals import Measured
from sweeps.claims.landed import Landed
from sweeps.claims.table import FAITHFUL_PART, HEADLINE, TARGETS_PART, WITHOUT_NONZEROS
from sweeps.show.curves import Point, plot_curves
from sweeps.show.plot import FAINT, INK, plot_frontier


def draw_pictures(landed: Landed, folder: Path) -> list[Path]:
    """Draw what there are rows for; the files drawn."""
    drawn = []
    studies = HEADLINE if landed.has(*HEADLINE) else WITHOUT_NONZEROS
    if landed.has(*studies):
        drawn.append(folder / "headline.png")
        plot_frontier(landed.frontier(studies), str(drawn[-1]))
    if landed.has("ablations"):
        drawn.append(folder / "ablations.png")
        draw_ablations(Ablations(landed, ["ablations"])).savefig(drawn[-1], dpi=160, facecolor="white")
    targets = [study for study in TARGETS_PART + FAITHFUL_PART if landed.has(study)]
    if points := {str(method): found for method in METHODS if (found := curve_of_kinds(landed, targets, method))}:
        drawn.append(folder / "targets.png")
        plot_curves(points, str(drawn[-1]), "Circuit size against task loss, models matched in loss")
    return drawn


def curve_of_kinds(landed: Landed, studies: Sequence[str], method: str) -> list[Point]:
    """Edges of sparse and of dense models at every task loss, over the tasks that both reach; seeds are averaged."""
    edges = task_edges(landed, studies) if studies and mismatch(landed, studies) is None else {}
    points = []
    for target in ALL_TARGETS:
        of_kind = [edges.get((kind, method, target), {}) for kind in ("sparse", "dense")]
        if common := sorted(of_kind[0].keys() & of_kind[1].keys()):
            means = [tuple(math.exp(fmean(found[task])) for task in common) for found in of_kind]
            points.append(Point(target, dict(zip(("sparse", "dense"), means, strict=True))))
    return points


def draw_ablations(rows: Ablations) -> Figure:
    """Differences in loss from the base with their intervals, the most harmful change on top."""
    fewer = [Contrast(f"AbsTopK keeps {name}", {FRACTION: fraction}) for fraction, name in FEWER]
    simple = [contrast for contrast in CONTRASTS if not contrast.against and contrast.column == "val_loss"]
    found = [(contrast.name, rows.difference(contrast)) for contrast in (*simple, *fewer)]
    shown = [(name, m) for name, m in found if isinstance(m, Measured) and math.isfinite(m.value)]
    shown.sort(key=lambda entry: entry[1].value)
    figure = Figure(figsize=(8, 0.32 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=FAINT, linewidth=1)
    for place, (_, measured) in enumerate(shown):
        if measured.low is not None and measured.high is not None:
            axes.plot([measured.low, measured.high], [place, place], color=FAINT, linewidth=2)
        axes.plot([measured.value], [place], "o", color=INK)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.set_xlabel("validation loss less the base's, nats (95 % interval over seeds)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
