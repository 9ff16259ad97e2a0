"""Where the heads of a circuit attend: q and k for the page's own softmax, and what they come to over all prompts.

Shapes: R rows, T time, D channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from circuit.ablated.compact import layers_of
from circuit.graph.record import Circuit
from circuit.inspect.activity import answer_pattern, kept_heads
from circuit.inspect.runs import Seen
from circuit.pages.packing import packed, scale_of
from circuit.pages.roles import Places
from circuit.pages.shown import TokenTable
from circuit.tasks import PairBatch
from sparse_model.model.sites import site_name
from sparse_model.model.transformer import SparseTransformer

_PAIRS = 6
"""Pairs whose patterns are shown at most, and"""
_BYTES = 260_000
"""of a page for them."""


def attention_data(
    model: SparseTransformer,
    circuit: Circuit,
    data: PairBatch,
    runs: dict[str, Seen],
    places: Places,
    shown: list[int],
    table: TokenTable,
    omitted: list[str],
) -> dict[str, Any]:
    """Every kept head: q and k on the `shown` rows, and its mean pattern on all of them, by run."""
    heads = kept_heads(circuit, model.config.d_head)
    per_pair = 2 * 2 * 2 * 2 * data.tokens.shape[1] * model.config.d_head * max(1, len(heads))
    pairs = max(1, min(_PAIRS, _BYTES // per_pair, len(shown) // 2))
    # an even sample of the shown pairs, which are sorted by margin
    chosen = sorted({round(i * (len(shown) // 2 - 1) / max(1, pairs - 1)) for i in range(pairs)}) if shown else []
    rows = [index for pair in chosen for index in (2 * pair, 2 * pair + 1)]
    if heads and len(rows) < len(shown):
        omitted.append(f"Attention: patterns of {len(rows) // 2} of the {len(shown) // 2} pairs shown")
    return {
        "rows": rows,
        "scale": 1 / math.sqrt(model.config.d_head),
        "heads": [
            _head(model, circuit, data, runs, places, head, [shown[row] for row in rows], table) for head in heads
        ],
    }


def _head(
    model: SparseTransformer,
    circuit: Circuit,
    data: PairBatch,
    runs: dict[str, Seen],
    places: Places,
    head: tuple[int, int],
    rows: list[int],
    table: TokenTable,
) -> dict[str, Any]:
    layer, number = head
    d_head = model.config.d_head
    part = slice(number * d_head, (number + 1) * d_head)
    sink = layers_of(model)[layer].attn.sink
    logit = None if sink is None else float(sink[number])
    kept = {
        kind: [c for c in circuit.nodes.get(site_name(layer, f"attn.{kind}"), ()) if part.start <= c < part.stop]
        for kind in "qkv"
    }  # fmt: skip
    found: dict[str, Any] = {"layer": layer, "head": number, "sink": logit, "kept": kept, "runs": {}}
    for name, run in runs.items():
        q, k = run.q[layer][..., part], run.k[layer][..., part]
        live = (q.ne(0).any(0).any(0) & k.ne(0).any(0).any(0)).nonzero().squeeze(1)
        found["runs"][name] = (
            {"channels": live.tolist()}
            | _packed(q[..., live], k[..., live], data, rows)
            | _summary(q, k, data, places, logit, table, part.start)
        )
    return found


def _packed(q: Tensor, k: Tensor, data: PairBatch, rows: list[int]) -> dict[str, Any]:
    """q and k of rows one after the other, each (its tokens, channels)."""
    scales = {"q": scale_of(q), "k": scale_of(k)}
    parts: dict[str, Any] = {f"{name}_scale": scale for name, scale in scales.items()}
    for name, values in (("q", q), ("k", k)):
        flat = [values[row, : int(data.length[row])].flatten() for row in rows]
        parts[name] = packed(torch.cat(flat) if flat else torch.zeros(0), scales[name])
    return parts


def _summary(
    q: Tensor, k: Tensor, data: PairBatch, places: Places, sink: float | None, table: TokenTable, first: int
) -> dict[str, Any]:
    """Over all prompts, of the answer position: mean share on the cue, on itself and on the sink, tokens with the
    largest shares, and the share of each channel in how scores differ between tokens. `first` is the number of the
    head's first channel.
    """
    shares, terms = answer_pattern(q, k, data, sink)
    total = shares.sum(-1)
    ids, inverse = torch.unique(data.tokens, return_inverse=True)
    by_token = torch.zeros(len(ids), dtype=torch.float64).index_add(
        0, inverse[places.real], (shares[places.real] / len(q)).double()
    )
    best = by_token.argsort(descending=True, stable=True)[:4].tolist()
    return {
        "cue": float((shares * places.cue).sum(-1).mean()),
        "self": float((shares * places.answer).sum(-1).mean()),
        "sink_share": None if sink is None else float(1 - total.mean()),
        "tokens": [[table.of(int(ids[i])), float(by_token[i])] for i in best],
        "channel_shares": [[first + channel, share] for channel, share in channel_shares(terms, places.real)],
    }


def channel_shares(terms: Tensor, real: Tensor) -> list[tuple[int, float]]:
    """[channel, share]: of the variance of the scores over a prompt's tokens, what each channel's term covaries with
    it, averaged over prompts; the shares add up to 1. Empty where the scores are all alike."""
    weight = real.double()[..., None]
    count = weight.sum(1, keepdim=True)
    centred = (terms.double() - (terms.double() * weight).sum(1, keepdim=True) / count) * weight
    total = centred.sum(-1, keepdim=True)
    variance = float((total**2).sum())
    if variance <= 1e-12:
        return []
    shares = (centred * total).sum((0, 1)) / variance
    return [(i, float(shares[i])) for i in shares.abs().argsort(descending=True).tolist() if abs(shares[i]) >= 0.005]
