"""Where in pretraining text a node of a circuit is how active, in the model's own forward pass.

Shapes: n windows of T tokens, K nodes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circuit.pages.shown import TokenTable

_BEFORE, _AFTER = 12, 5
"""Tokens shown around the one at which a node has its value."""
ENDS, _QUANTILES = 4, (0.1, 0.5, 0.9)
"""Passages shown at either end, and places in the order of the values other than zero at which one more is."""
_BINS = 24


def passages(values: Tensor, text: Tensor, table: TokenTable) -> dict[str, Any]:
    """Of one node's values (n, T): histogram, share that is not zero, and passages of text at its top, its bottom and
    quantiles between, no two in one window at either end."""
    flat = values.flatten()
    nonzero = flat[flat != 0]
    bins = _histogram(nonzero)
    top, bottom = _ends(values, highest=True), _ends(values, highest=False)
    groups = [("top", place) for place in top if float(values[place]) != 0]
    groups += [(f"{quantile:.0%} of the values that are not 0", place) for quantile, place in _between(values)]
    groups += [("bottom", place) for place in bottom if float(values[place]) < min(0.0, float(values[top[-1]]))]
    return {
        "active": len(nonzero) / flat.numel(),
        "tokens": flat.numel(),
        "histogram": bins,
        "passages": [_passage(name, values, text, place, table) for name, place in groups],
    }


def _histogram(values: Tensor) -> dict[str, Any]:
    if not len(values) or float(values.min()) == float(values.max()):
        return {"low": float(values[0]) if len(values) else 0.0, "high": float(values[0]) if len(values) else 0.0,
                "counts": [len(values)]}  # fmt: skip
    counts = torch.histc(values, _BINS)
    return {"low": float(values.min()), "high": float(values.max()), "counts": counts.long().tolist()}


def _ends(values: Tensor, highest: bool) -> list[tuple[int, int]]:
    """The furthest places at one end, one per window."""
    best = values.max(1) if highest else values.min(1)
    order = best.values.argsort(descending=highest, stable=True)[:ENDS].tolist()
    return [(window, int(best.indices[window])) for window in order]


def _between(values: Tensor) -> list[tuple[float, tuple[int, int]]]:
    """Places of quantiles among the values that are not zero."""
    places = values.ne(0).nonzero()
    if len(places) < 2 * ENDS + len(_QUANTILES):
        return []
    order = values[places[:, 0], places[:, 1]].argsort(stable=True)
    chosen = [(quantile, places[order[round(quantile * (len(order) - 1))]]) for quantile in _QUANTILES]
    return [(quantile, (int(window), int(position))) for quantile, (window, position) in chosen]


def _passage(name: str, values: Tensor, text: Tensor, place: tuple[int, int], table: TokenTable) -> list[Any]:
    """[name, value, place among the tokens, tokens, values]."""
    window, position = place
    start = max(0, position - _BEFORE)
    part = slice(start, position + 1 + _AFTER)
    shown = [float(f"{value:.3g}") for value in values[window, part].tolist()]
    value = float(f"{float(values[window, position]):.5g}")
    return [name, value, position - start, table.all(text[window, part].tolist()), shown]
