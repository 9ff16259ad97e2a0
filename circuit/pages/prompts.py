"""Prompts as heat maps: what every node does at every token, in the circuit and in the whole model side by side.

Shapes: R rows of the held-out prompts, T time, K nodes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from circuit.graph.record import Circuit
from circuit.inspect.runs import Seen
from circuit.pages.packing import packed, scale_of
from circuit.pages.roles import Places
from circuit.pages.shown import TokenTable
from circuit.tasks import PairBatch

_PAIRS = 24
"""Pairs shown at most, and"""
_BYTES = 420_000
"""of a page for their values; where nodes are many, pairs are fewer."""


def calibrated(circuit: Circuit, data: PairBatch, margins: Tensor) -> Tensor:
    """Margins (R,) under the circuit's calibration."""
    sides = torch.where(data.right < data.wrong, 1.0, -1.0)
    return circuit.scale * margins + circuit.shift * sides


def chosen_pairs(margins: Tensor, most: int) -> list[int]:
    """Pairs to show, worst first: up to half are the worst, which are wrong if any is; the others evenly between."""
    worst = margins.view(-1, 2).amin(1)
    order = worst.argsort(stable=True).tolist()
    if len(order) <= most:
        return order
    wrong = int((worst <= 0).sum())
    first = min(wrong, most // 2)
    rest = most - first
    even = [first + round(i * (len(order) - 1 - first) / max(1, rest - 1)) for i in range(rest)]
    return [order[i] for i in dict.fromkeys([*range(first), *even])]


def prompts_data(
    circuit: Circuit, data: PairBatch, inside: Seen, whole: Seen, places: Places, table: TokenTable, omitted: list[str]
) -> dict[str, Any]:
    """The shown pairs: tokens, cue, answers, margins and node values of both runs."""
    margins = calibrated(circuit, data, inside.margins)
    per_pair = 4 * 2 * data.tokens.shape[1] * max(1, circuit.n_nodes)
    shown = chosen_pairs(margins, max(2, min(_PAIRS, _BYTES // per_pair)))
    if len(shown) < data.n_pairs:
        omitted.append(
            f"Prompts: {len(shown)} of {data.n_pairs} held-out pairs, the worst ones and an even sample of the others"
        )
    scales = [scale_of(inside.values[..., k], whole.values[..., k]) for k in range(circuit.n_nodes)]
    rows = [row for pair in shown for row in (2 * pair, 2 * pair + 1)]
    return {
        "scales": scales,
        "numbers": rows,
        "rows": [_row(data, row, float(margins[row]), float(whole.margins[row]), places, table) for row in rows],
        "circuit": _values(inside.values, data, rows, scales),
        "model": _values(whole.values, data, rows, scales),
        "of": data.n_pairs,
        "wrong": int((margins <= 0).sum()),
        "wrong_model": int((whole.margins <= 0).sum()),
    }


def _row(
    data: PairBatch, row: int, margin: float, whole_margin: float, places: Places, table: TokenTable
) -> dict[str, Any]:
    length = int(data.length[row])
    return {
        "tokens": table.all(data.tokens[row, :length].tolist()),
        "cue": places.cue[row, :length].nonzero().squeeze(1).tolist(),
        "right": table.of(int(data.right[row])),
        "wrong": table.of(int(data.wrong[row])),
        "margin": margin,
        "model_margin": whole_margin,
    }


def _values(values: Tensor, data: PairBatch, rows: list[int], scales: list[float]) -> str:
    """Rows one after the other, each (its tokens, K)."""
    scale = torch.tensor([scale or 1.0 for scale in scales])
    parts = [(values[row, : int(data.length[row])] / scale).flatten() for row in rows]
    return packed(torch.cat(parts) if parts else torch.zeros(0), 1.0)
