"""A circuit as a still picture with its figures, for notebooks and for pages that show several. Needs no model."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from circuit.graph.record import Circuit
from circuit.pages.head import head_data
from circuit.pages.layout import laid_out
from circuit.pages.picture import skeleton
from circuit.pages.render import asset

NO_HEADS = 2**30
"""Channels of a head where the model is not at hand to tell: then q, k and v of a layer stand in one box."""
MOST_DRAWN = 1500
"""Edges drawn, the largest weights first."""


def still_svg(circuit: Circuit, d_head: int = NO_HEADS) -> str:
    """The graph as SVG, or nothing where there are no nodes."""
    if not circuit.n_nodes:
        return ""
    picture = skeleton(circuit, laid_out(circuit, d_head))
    edges = sorted(picture["edges"], key=lambda edge: -abs(edge[4]))[:MOST_DRAWN]
    largest = max((abs(edge[4]) for edge in edges), default=1.0)
    lines = [_line(picture["nodes"], edge, largest) for edge in edges]
    return _environment().from_string(asset("still.svg")).render(picture=picture, lines=lines, task=circuit.task)


def still_html(circuit: Circuit, d_head: int = NO_HEADS) -> str:
    """Figures and the still graph, as a fragment of HTML that carries its own style."""
    head = head_data(circuit, {"model": circuit.model})
    return _environment().from_string(asset("still.html")).render(head=head, picture=Markup(still_svg(circuit, d_head)))


def _line(nodes: list[Any], edge: list[Any], largest: float) -> dict[str, Any]:
    (_, _, x1, y1), (_, _, x2, y2) = nodes[edge[0]], nodes[edge[1]]
    bend = (y1 + y2) / 2
    width = 0.8 + 3.2 * abs(edge[4]) / (largest or 1.0)
    path = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {bend:.1f} {x2:.1f} {bend:.1f} {x2:.1f} {y2:.1f}"
    return {"path": path, "width": round(width, 2), "negative": edge[4] < 0}


def _environment() -> jinja2.Environment:
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
