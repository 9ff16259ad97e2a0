"""Whether a circuit does what the whole model does, also where that is wrong, and in the way it does it (METHOD 11).

Shapes: P prompts, B those of a batch, T time, S kept channels of a site, H heads, K = d_head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit.ablated.batches import AnswerBatch
from circuit.ablated.compact import AblatedModel, layers_of
from circuit.proofs.kept import Ablated, CircuitParts
from sparse_model.model.sites import site_name

Values = Mapping[str, Tensor]
"""Site -> (B, T, S) values of its kept channels, or (B, 1, S) at the answer positions alone."""


class Agreement(NamedTuple):
    """Share of prompts on which circuit and whole model decide alike, of all and of the `wrong` ones that the whole
    model gets wrong (None of none); mean KL divergence in nats of the circuit's two-answer distribution from the
    model's."""

    alike: float
    divergence: float
    alike_wrong: float | None
    wrong: int


class Inside(NamedTuple):
    """Correlation of every kept node's values in the circuit and in the whole model, about the mean that ablation would
    hold it at: many a node has one value at all answers, and says by that it is there. Overlap of every kept head's
    attention from the answer position: the sum of the smaller of two shares. Both by name."""

    nodes: dict[str, float]
    heads: dict[str, float]


def agreement(kept: CircuitParts, batches: Sequence[AnswerBatch]) -> Agreement:
    """Of the calibrated circuit with the model's own logits."""
    sides = torch.cat([batch.sides for batch in batches])
    margins = kept.margins(kept.beside(torch.zeros_like(kept.others, dtype=torch.bool)), batches)
    circuit = kept.calibration.scale * margins.double() + kept.calibration.shift * sides
    whole = kept.margins(Ablated(torch.ones_like(kept.nodes), None), batches).double()
    alike = (circuit > 0) == (whole > 0)
    p = torch.sigmoid(whole)
    divergence = p * (F.logsigmoid(whole) - F.logsigmoid(circuit)) + (1 - p) * (
        F.logsigmoid(-whole) - F.logsigmoid(-circuit)
    )
    wrong = whole <= 0
    there = float(alike[wrong].float().mean()) if bool(wrong.any()) else None
    return Agreement(float(alike.float().mean()), float(divergence.mean()), there, int(wrong.sum()))


@torch.no_grad()
def inside(kept: CircuitParts, batches: Sequence[AnswerBatch]) -> Inside:
    """What nodes and heads do in the circuit, against what they do in the whole model."""
    ablated = kept.beside(torch.zeros_like(kept.others, dtype=torch.bool))
    columns: dict[str, list[tuple[Tensor, Tensor]]] = {}
    overlaps: dict[str, list[Tensor]] = {}
    for batch in batches:
        circuit = _values(kept, ablated, batch)
        whole = _values(kept, Ablated(torch.ones_like(kept.nodes), None), batch)
        for site, channels in kept.index.channels(kept.nodes).items():
            if len(channels) and site in circuit:
                mean = kept.means[site][channels]
                both = _alike(circuit[site] - mean, whole[site][..., channels] - mean, batch.last)
                columns.setdefault(site, []).append(both)
        for layer in range(kept.model.config.n_layer):
            for head, overlap in _heads(kept, layer, circuit, whole, batch).items():
                overlaps.setdefault(head, []).append(overlap)
    nodes = {
        f"{site}.{channel}": value
        for site, pairs in columns.items()
        for channel, value in zip(
            kept.index.channels(kept.nodes)[site].tolist(),
            _correlations(*(torch.cat(x) for x in zip(*pairs, strict=True))),
            strict=True,
        )
    }
    return Inside(nodes, {head: float(torch.cat(found).mean()) for head, found in overlaps.items()})


def _values(kept: CircuitParts, ablated: Ablated, batch: AnswerBatch) -> dict[str, Tensor]:
    """Values of all nodes that are not ablated and do something, by site."""
    found: dict[str, Tensor] = {}

    def look(site: str, channels: Tensor, x: Tensor) -> Tensor:
        found[site] = x
        return x

    AblatedModel(kept.model, kept.means, kept.index.channels(ablated.nodes), ablated.edges, look).margins(batch)
    here = kept.index.channels(ablated.nodes)
    return {site: x for site, x in found.items() if x.shape[-1] == len(here[site])}


def _alike(a: Tensor, b: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Values (B, T or 1, S) of two runs as (n, S) of the positions that both have: all up to the last, or the last."""
    if a.shape[1] != b.shape[1] or a.shape[1] == 1:
        return _at(a, last), _at(b, last)
    real = torch.arange(a.shape[1], device=last.device) <= last[:, None]
    return a[real], b[real]


def _at(x: Tensor, last: Tensor) -> Tensor:
    """(B, S) of x (B, T or 1, S) at the answer positions."""
    return x[:, 0] if x.shape[1] == 1 else x[torch.arange(len(x), device=x.device), last]


def _correlations(a: Tensor, b: Tensor) -> list[float]:
    """Of the columns of two (n, S), about 0; 1 where both are 0 throughout, 0 where one is."""
    a, b = a.double(), b.double()
    still_a, still_b = (x.abs().amax(0) < 1e-6 for x in (a, b))
    product = (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp_min(1e-12)
    found: list[float] = torch.where(still_a | still_b, (still_a & still_b).double(), product).tolist()
    return found


def _heads(kept: CircuitParts, layer: int, circuit: Values, whole: Values, batch: AnswerBatch) -> dict[str, Tensor]:
    """(B,) by kept head: one with a kept value channel."""
    d_head = kept.model.config.d_head
    query, key, value = (site_name(layer, f"attn.{kind}") for kind in "qkv")
    heads = torch.unique(kept.index.channels(kept.nodes)[value] // d_head)
    found = {}
    for head in heads.tolist() if query in circuit else ():
        both = [_pattern(kept, values, layer, head, (query, key), batch) for values in (circuit, whole)]
        found[f"layers.{layer}.attn.head.{head}"] = torch.minimum(*both).sum(-1)
    return found


def _pattern(
    kept: CircuitParts, values: Values, layer: int, head: int, sites: tuple[str, str], batch: AnswerBatch
) -> Tensor:
    """(B, T) attention of a head from the answer position, the share of a sink in front where there is one."""
    d_head, attention = kept.model.config.d_head, layers_of(kept.model)[layer].attn
    query, key = (_filled(kept, site, values[site])[..., head * d_head : (head + 1) * d_head] for site in sites)
    scores = (_at(query, batch.last)[:, None] * key).sum(-1) / math.sqrt(d_head)
    unseen = torch.arange(key.shape[1], device=key.device) > batch.last[:, None]
    scores = scores.masked_fill(unseen, -math.inf)
    if attention.sink is not None:
        scores = torch.cat([attention.sink[head].expand(len(scores), 1), scores], 1)
    return scores.softmax(-1)


def _filled(kept: CircuitParts, site: str, x: Tensor) -> Tensor:
    """(B, T, C) of kept channels' values x (B, T, S), others at their means."""
    if x.shape[-1] == kept.index.widths[site]:
        return x
    channels = kept.index.channels(kept.nodes)[site]
    return kept.means[site].expand(*x.shape[:-1], -1).clone().index_copy(-1, channels, x)
