"""What the nodes of a circuit do on prompts: in the circuit, and in the whole model.

The forward pass is the model's own, with every node outside the circuit replaced by its mean. That is slower than the
compacted model that searches use, and has every node at every position.

Shapes: R rows of a task's prompts, T time, K nodes of the circuit in the order of `nodes_of`, H heads, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from circuit.ablated.ablation import float32_activations
from circuit.ablated.compact import layers_of
from circuit.ablated.hooks import hooked
from circuit.graph.edges import matrices
from circuit.graph.record import Circuit, means_of
from circuit.inspect.running import nodes_of
from circuit.tasks import PairBatch
from sparse_model.model.sites import site_names, site_width
from sparse_model.model.transformer import SparseTransformer

_ROWS_AT_ONCE = 64


class Seen(NamedTuple):
    """`values` (R, T, K) of the nodes; `margins` (R,) logit(right) - logit(wrong) as the unembedding gives them, in
    nats; `q` and `k`: layer -> (R, T, C) after AbsTopK and ablation, of the layers asked for."""

    values: Tensor
    margins: Tensor
    q: dict[int, Tensor]
    k: dict[int, Tensor]


@torch.no_grad()
def seen_on(
    model: SparseTransformer, circuit: Circuit, data: PairBatch, *, whole: bool, layers: frozenset[int] = frozenset()
) -> Seen:
    """The circuit's nodes on prompts: in the whole model, or with all other nodes and removed edges at their means."""
    held = None if whole else Held(model, circuit)
    parts = []
    with float32_activations(model):
        for start in range(0, len(data.length), _ROWS_AT_ONCE):
            parts.append(_batch(model, circuit, data, slice(start, start + _ROWS_AT_ONCE), held, layers))
    return Seen(
        torch.cat([part.values for part in parts]),
        torch.cat([part.margins for part in parts]),
        {layer: torch.cat([part.q[layer] for part in parts]) for layer in layers},
        {layer: torch.cat([part.k[layer] for part in parts]) for layer in layers},
    )


def _batch(
    model: SparseTransformer, circuit: Circuit, data: PairBatch, rows: slice, held: Held | None, layers: frozenset[int]
) -> Seen:
    device = model.embedding.device
    tokens, right, wrong = (field[rows].to(device) for field in (data.tokens, data.right, data.wrong))
    places: dict[str, list[tuple[int, int]]] = {}
    for place, node in enumerate(nodes_of(circuit)):
        places.setdefault(node.site, []).append((place, node.channel))
    values = torch.zeros(*tokens.shape, circuit.n_nodes, device=device)
    whole: dict[str, dict[int, Tensor]] = {"attn.q": {}, "attn.k": {}}

    def look(site: str, x: Tensor) -> Tensor:
        x = x if held is None else held.at_site(site, x)
        if found := places.get(site):
            values[..., [place for place, _ in found]] = x[..., [channel for _, channel in found]]
        layer, kind = _parted(site)
        if kind in whole and layer in layers:
            whole[kind][layer] = x.cpu()
        return x

    with held.installed() if held else _nothing():
        final = model.final(tokens, look)
    last = (data.length[rows] - 1).to(device)
    row = torch.arange(len(last), device=device)
    logits = model.logits(final[row, last], tokens[row, last])
    margins = logits[row, right] - logits[row, wrong]
    return Seen(values.cpu(), margins.cpu(), whole["attn.q"], whole["attn.k"])


def _parted(site: str) -> tuple[int, str]:
    parts = site.split(".", 2)
    return (int(parts[1]), parts[2]) if len(parts) == 3 else (-1, site)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class Held:
    """Nodes outside a circuit at their means, and weights that are no edges passing the mean of their source."""

    def __init__(self, model: SparseTransformer, circuit: Circuit) -> None:
        device = model.embedding.device
        self.means = means_of(circuit, device)
        self.inside = {
            site: torch.zeros(site_width(model.config, site), dtype=torch.bool, device=device).index_fill(
                0, torch.tensor(circuit.nodes.get(site, ()), dtype=torch.long, device=device), True
            )
            for site in site_names(model.config)
        }
        self.removed = [] if circuit.kept_edges(device) is None else list(self._removed(model, circuit))

    def at_site(self, site: str, x: Tensor) -> Tensor:
        """The activation (..., C) of a site with the nodes outside at their means."""
        return torch.where(self.inside[site], x, self.means[site].to(x.dtype))

    def installed(self) -> AbstractContextManager[None]:
        """While it lasts, removed edges pass means through the model's own matrices."""
        return hooked(self.removed)

    def _removed(
        self, model: SparseTransformer, circuit: Circuit
    ) -> Iterator[tuple[torch.nn.Module, Callable[..., Tensor]]]:
        kept = {(edge.source, edge.target) for edge in circuit.edges}
        for i, matrix, source, target, weight in matrices(model):
            lost = weight * self.inside[target][:, None] * self.inside[source]
            for a, b in kept:
                if a.site == source and b.site == target:
                    lost[b.channel, a.channel] = 0
            if lost.count_nonzero():
                layer = layers_of(model)[i]
                linear = {"qkv": layer.attn.qkv, "out": layer.attn.out, "up": layer.mlp.up, "down": layer.mlp.down}
                first = model.config.d_attn * "qkv".index(target[-1]) if matrix == "qkv" else 0
                yield linear[matrix], self._hook(first, lost, self.means[source])

    def _hook(self, first: int, lost: Tensor, mean: Tensor) -> Callable[..., Tensor]:
        def correct(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            change = (mean - inputs[0]) @ lost.T
            changed = output.clone()
            changed[..., first : first + len(lost)] += change
            return changed

        return correct
