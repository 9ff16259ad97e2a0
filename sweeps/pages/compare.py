"""Circuits of one task compared: as a table, as JSON, and as a page with their graphs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from circuit.graph.record import Circuit
from circuit.inspect.likeness import MATCHED, Figure, Likeness
from circuit.pages.head import head_data
from circuit.pages.packing import rounded
from circuit.pages.render import asset, html
from circuit.pages.still import still_svg

COMPARED_FIGURES = {
    "nodes": "Jaccard of nodes",
    "edges": "Jaccard of edges",
    "matched": f"share of nodes matched (|r| ≥ {MATCHED:g})",
    "effects": "correlation of effects per prompt",
    "attention": "attention to the same tokens",
}
"""Figures of a `Likeness`, by what they are called."""


def comparison_data(names: Sequence[str], circuits: Sequence[Circuit], found: Sequence[Likeness]) -> dict[str, Any]:
    """The comparison as JSON: circuits, and every two of them."""
    sizes = [
        {"name": name, "model": c.model, "method": c.method, "nodes": c.n_nodes, "edges": c.n_edges,
         "target": c.target_loss, "heldout_loss": c.heldout_loss, "summary": c.summary}
        for name, c in zip(names, circuits, strict=True)
    ]  # fmt: skip
    pairs = [
        {"first": names[like.first], "second": names[like.second]}
        | {field: _spelled(getattr(like, field)) for field in COMPARED_FIGURES}
        | {"matches": [match._asdict() for match in like.matches]}
        for like in found
    ]
    data = {
        "format": "circuit-sweeps/comparison",
        "version": 1,
        "task": circuits[0].task,
        "circuits": sizes,
        "pairs": pairs,
    }
    return rounded(data)  # type: ignore[no-any-return]


def _spelled(figure: Figure | None) -> dict[str, float | None] | None:
    return None if figure is None else figure._asdict()


def comparison_page(
    names: Sequence[str], circuits: Sequence[Circuit], d_heads: Sequence[int], data: dict[str, Any]
) -> str:
    """One HTML file: the figures, and the graphs side by side."""
    stills = [
        (name, head_data(circuit, {}), Markup(still_svg(circuit, d_head)))
        for name, circuit, d_head in zip(names, circuits, d_heads, strict=True)
    ]
    styles, scripts = [asset("base.css"), asset("compare.css", "sweeps.pages")], [asset("ready.js")]
    values = {"task": data["task"], "stills": stills, "pairs": data["pairs"], "figures": COMPARED_FIGURES}
    return html(asset("compare.html", "sweeps.pages"), data, styles, scripts, **values)
