"""What nodes do and where heads attend in the whole model.

Shapes: n windows (or rows) of T tokens, K nodes; R rows, D channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from circuit.ablated.ablation import float32_activations
from circuit.graph.record import Circuit, Node
from circuit.tasks import PairBatch
from sparse_model.model.transformer import SparseTransformer

_WINDOWS_AT_ONCE = 16


@torch.no_grad()
def activations(model: SparseTransformer, nodes: Sequence[Node], text: Tensor) -> Tensor:
    """(n, T, K) of windows (n, T), in float32 on the CPU."""
    channels: dict[str, list[tuple[int, int]]] = {}
    for place, node in enumerate(nodes):
        channels.setdefault(node.site, []).append((place, node.channel))
    found = torch.zeros(*text.shape, len(nodes))
    with float32_activations(model):
        for start in range(0, len(text), _WINDOWS_AT_ONCE):
            part = found[start : start + _WINDOWS_AT_ONCE]

            def look(site: str, x: Tensor, part: Tensor = part) -> Tensor:
                if here := channels.get(site):
                    part[..., [place for place, _ in here]] = x[..., [channel for _, channel in here]].cpu()
                return x

            model.final(text[start : start + _WINDOWS_AT_ONCE].to(model.embedding.device), look)
    return found


def kept_heads(circuit: Circuit, d_head: int) -> list[tuple[int, int]]:
    """(layer, head) of every head with a kept node, in the order of the forward pass."""
    found = set()
    for site, channels in circuit.nodes.items():
        if site.endswith((".attn.q", ".attn.k", ".attn.v")):
            found |= {(int(site.split(".")[1]), channel // d_head) for channel in channels}
    return sorted(found)


def answer_pattern(q: Tensor, k: Tensor, data: PairBatch, sink: float | None) -> tuple[Tensor, Tensor]:
    """Shares (R, T) of the answer position's attention, and the terms (R, T, D) q_c k_c / sqrt(D) of its scores."""
    R, T, D = q.shape
    last = data.length - 1
    asking = q[torch.arange(R), last]
    terms = asking[:, None, :] * k / math.sqrt(D)
    scores = terms.sum(-1).masked_fill(torch.arange(T) > last[:, None], -math.inf)
    if sink is None:
        return scores.softmax(-1), terms
    return torch.cat([scores, torch.full((R, 1), sink)], -1).softmax(-1)[:, :-1], terms
