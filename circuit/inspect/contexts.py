"""Where in a text the nodes of a circuit are most and least active, in the model's own forward pass.

Shapes: n windows of T tokens, K nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from circuit.ablated.ablation import float32_activations
from circuit.graph.record import Node
from sparse_model.model.inputs import check_tokens
from sparse_model.model.transformer import SparseTransformer

WINDOWS_AT_ONCE = 16


class Place(NamedTuple):
    """A node's value at a position of a window of the text."""

    value: float
    window: int
    position: int


class Contexts(NamedTuple):
    """The highest and the lowest places of a node, the furthest first, no two of them in one window, and the share of
    all positions at which it is not zero."""

    top: list[Place]
    bottom: list[Place]
    active: float


@torch.no_grad()
def contexts(model: SparseTransformer, nodes: Sequence[Node], text: Tensor, count: int = 5) -> dict[Node, Contexts]:
    """Contexts of nodes in a text, tokens (n, T) of at most the model's context each; InputError for other axes."""
    check_tokens(text, model.config, what="text")
    highest, lowest, active = [], [], torch.zeros(len(nodes), dtype=torch.float64)
    with float32_activations(model):
        for windows in torch.split(text, WINDOWS_AT_ONCE):
            values = _values(model, nodes, windows.to(model.embedding.device)).cpu()
            highest.append(values.max(1))
            lowest.append(values.min(1))
            active += values.ne(0).sum((0, 1))
    return {
        node: Contexts(
            _places(torch.cat([h.values[:, k] for h in highest]), torch.cat([h.indices[:, k] for h in highest]), count),
            _places(torch.cat([x.values[:, k] for x in lowest]), torch.cat([x.indices[:, k] for x in lowest]), -count),
            float(active[k]) / text.numel(),
        )
        for k, node in enumerate(nodes)
    }


def _values(model: SparseTransformer, nodes: Sequence[Node], windows: Tensor) -> Tensor:
    """(B, T, K) of windows (B, T)."""
    found = torch.zeros(*windows.shape, len(nodes), device=windows.device)

    def look(name: str, x: Tensor) -> Tensor:
        for k, node in enumerate(nodes):
            if node.site == name:
                found[..., k] = x[..., node.channel]
        return x

    model.final(windows, look)
    return found


def _places(values: Tensor, positions: Tensor, count: int) -> list[Place]:
    """The highest `count` of values (n,), one per window; the lowest where it is negative."""
    order = values.argsort(descending=count > 0, stable=True)[: abs(count)]
    return [Place(float(values[i]), int(i), int(positions[i])) for i in order]
