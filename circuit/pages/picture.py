"""The graph of a circuit as data: nodes, edges and lanes with their places, and what joins what beside weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from circuit.graph.edges import matrices
from circuit.graph.record import Circuit, Node
from circuit.inspect.running import nodes_of
from circuit.pages.head import answers_of
from circuit.pages.layout import GAP, Layout, is_lane, laid_out
from circuit.pages.roles import Places
from circuit.pages.shown import TokenTable
from circuit.tasks import PairBatch
from sparse_model.model.sites import FINAL_SITE
from sparse_model.model.transformer import SparseTransformer

_MOST_TOKENS = 10
"""Tokens below the graph: those of the cue first, then those that weigh most."""


def picture_data(
    model: SparseTransformer, circuit: Circuit, data: PairBatch, places: Places, table: TokenTable, omitted: list[str]
) -> dict[str, Any]:
    """Everything the page draws of the graph."""
    layout = laid_out(circuit, model.config.d_head)
    picture = skeleton(circuit, layout)
    feet, of = _feet(model, data, places, layout)
    picture["tokens"], picture["embedding"] = _tokens(model, feet, layout, table)
    picture["width"] = max([layout.width, *(x + GAP for _, x, _, _ in picture["tokens"])])
    if of > len(feet):
        omitted.append(
            f"Graph: {len(feet)} of the {of} tokens of the prompts that write to a lane, those of the cue first"
        )
    picture["answers"], picture["unembedding"], n_answers = _answers(model, circuit, data, layout, table)
    picture["n_answers"] = n_answers
    embedded = embedded_lanes(model, data, layout)
    for lane in picture["lanes"]:
        if lane["channel"] in embedded:
            lane["bottom"], lane["embedded"] = layout.foot_y, True
    picture["weights"] = model_weights(model, circuit)
    return picture


def skeleton(circuit: Circuit, layout: Layout) -> dict[str, Any]:
    """The graph as far as the circuit alone tells it."""
    nodes = nodes_of(circuit)
    number = {node: i for i, node in enumerate(nodes)}
    return {
        "width": layout.width,
        "height": layout.height,
        "crossings": layout.crossings,
        "rows": [[row.name, row.label, row.y] for row in layout.rows],
        "boxes": [[box.layer, box.head, box.x, box.y, box.width, box.height] for box in layout.boxes],
        "foot": layout.foot_y,
        "nodes": [[node.site, node.channel, *layout.place[node]] for node in nodes],
        "edges": [[number[e.source], number[e.target], e.matrix, e.layer, e.weight] for e in circuit.edges],
        "lanes": _lanes(circuit, layout),
        "stream": [[number[a], number[b]] for a, b in stream(circuit)],
        "pairs": [[number[q], number[k]] for q, k in meeting(circuit)],
        "patterns": [[number[a], number[b]] for a, b in patterns(circuit, layout)],
    }


def stream(circuit: Circuit) -> list[tuple[Node, Node]]:
    """(writer, reader) of the same residual channel, the reader later in the forward pass."""
    nodes = [node for node in nodes_of(circuit) if is_lane(node.site)]
    return [
        (writer, reader)
        for i, writer in enumerate(nodes)
        if writer.site.endswith(".out")
        for reader in nodes[i + 1 :]
        if reader.channel == writer.channel and not reader.site.endswith(".out")
    ]


def meeting(circuit: Circuit) -> list[tuple[Node, Node]]:
    """(q, k) of the same channel of a layer: their product is a term of a head's scores."""
    return [
        (Node(site, channel), Node(site[:-1] + "k", channel))
        for site, channels in circuit.nodes.items()
        if site.endswith("attn.q")
        for channel in channels
        if channel in circuit.nodes.get(site[:-1] + "k", ())
    ]


def patterns(circuit: Circuit, layout: Layout) -> list[tuple[Node, Node]]:
    """(q or k, v) of one head: what it is attended to decides whose values are mixed."""
    found = []
    for box in layout.boxes:
        inside = {
            kind: [n for n, (x, y) in layout.place.items()
                   if n.site == f"layers.{box.layer}.attn.{kind}" and box.x <= x <= box.x + box.width]
            for kind in "qkv"
        }  # fmt: skip
        found += [(a, v) for a in (*inside["q"], *inside["k"]) for v in inside["v"]]
    return found


def _lanes(circuit: Circuit, layout: Layout) -> list[dict[str, Any]]:
    """Each channel of the residual stream that a kept node is on: from its first writer to its last reader."""
    lanes = []
    for channel, x in layout.lanes.items():
        on = [
            (node, place[1]) for node, place in layout.place.items() if is_lane(node.site) and node.channel == channel
        ]
        written = [y for node, y in on if node.site.endswith(".out")]
        read = [y for node, y in on if not node.site.endswith(".out")]
        bottom = max(written, default=max(read, default=layout.foot_y))
        lanes.append({
            "channel": channel, "x": x, "top": min([*read, *written], default=layout.foot_y), "bottom": bottom,
            "embedded": False, "unread": not read or (bool(written) and min(written) < min(read)),
        })  # fmt: skip
    return lanes


def embedded_lanes(model: SparseTransformer, data: PairBatch, layout: Layout) -> set[int]:
    """Lanes to which the embedding of some token of the prompts, or a learned position, writes."""
    tokens = torch.unique(data.tokens[torch.arange(data.tokens.shape[1]) < data.length[:, None]])
    lanes = [channel for channel in layout.lanes if channel < model.config.d_model]
    written = model.embedding.detach()[tokens.to(model.embedding.device)][:, lanes].ne(0).any(0)
    if model.positions is not None and model.config.positions == "learned":
        written |= model.positions.detach()[: data.tokens.shape[1]][:, lanes].ne(0).any(0)
    return {channel for channel, there in zip(lanes, written.tolist(), strict=True) if there}


def _feet(
    model: SparseTransformer, data: PairBatch, places: Places, layout: Layout
) -> tuple[list[tuple[int, bool]], int]:
    """(token, whether of the cue) of the tokens drawn, and how many tokens there are that write to a lane."""
    lanes = [channel for channel in layout.lanes if channel < model.config.d_model]
    if not lanes:
        return [], 0
    weights = model.embedding.detach().cpu()[:, lanes].abs().sum(1)
    ids, counts = torch.unique(data.tokens[places.real], return_counts=True)
    cue = Counter(data.tokens[places.cue].tolist())
    writes = [(int(t), int(n)) for t, n in zip(ids, counts, strict=True) if float(weights[t]) > 0]
    ranked = sorted(writes, key=lambda found: (-cue[found[0]], -found[1] * float(weights[found[0]]), found[0]))
    return [(token, token in cue) for token, _ in ranked[:_MOST_TOKENS]], len(writes)


def _tokens(
    model: SparseTransformer, feet: list[tuple[int, bool]], layout: Layout, table: TokenTable
) -> tuple[list[list[Any]], list[list[Any]]]:
    """[token, x, y, whether of the cue] and [index, lane, weight], tokens ordered by the lanes they write to."""
    weights = model.embedding.detach().cpu()

    def mean_x(token: int) -> float:
        joined = [(abs(float(weights[token, c])), x) for c, x in layout.lanes.items() if c < weights.shape[1]]
        total = sum(weight for weight, _ in joined)
        return sum(weight * x for weight, x in joined) / total if total else 0.0

    ordered = sorted(feet, key=lambda foot: (mean_x(foot[0]), foot[0]))
    step = max(GAP * 1.4, (layout.width - 2 * GAP) / max(1, len(ordered)))
    left = max(GAP, (layout.width - step * (len(ordered) - 1)) / 2)
    tokens = [[table.of(token), left + step * i, layout.token_y, cue] for i, (token, cue) in enumerate(ordered)]
    links = [
        [i, channel, float(weights[token, channel])]
        for i, (token, _) in enumerate(ordered)
        for channel in layout.lanes
        if channel < weights.shape[1] and float(weights[token, channel]) != 0
    ]
    return tokens, links


def _answers(
    model: SparseTransformer, circuit: Circuit, data: PairBatch, layout: Layout, table: TokenTable
) -> tuple[list[list[Any]], list[list[Any]], int]:
    """[token, x, y, bias] of the two answers and [final.in channel, index, weight] of the unembedding, and how many
    answers there are in all."""
    chosen, count = answers_of(data)
    weights, bias = model.unembedding.detach().cpu(), model.unembedding_bias.detach().cpu()
    middle, apart = layout.width / 2, max(90.0, min(layout.width / 4, 220.0))
    answers = [
        [table.of(token), middle + side * apart / 2, layout.answer_y, float(bias[token])]
        for side, token in zip((-1, 1), chosen, strict=True)
    ]
    links = [
        [channel, i, float(weights[token, channel])]
        for channel in circuit.nodes.get(FINAL_SITE, ())
        for i, token in enumerate(chosen)
        if float(weights[token, channel]) != 0
    ]
    return answers, links, count


def model_weights(model: SparseTransformer, circuit: Circuit) -> list[list[int]]:
    """[weights into it, out of it] of every node, in the whole model: nonzero ones of the four matrices."""
    into: dict[str, Tensor] = {}
    out: dict[str, Tensor] = {}
    for _, _, source, target, weight in matrices(model):
        into[target] = weight.ne(0).sum(1).cpu()
        out[source] = out.get(source, 0) + weight.ne(0).sum(0).cpu()
    unembedding = model.unembedding.detach().ne(0).sum(0).cpu()
    out[FINAL_SITE] = unembedding
    return [
        [int(into[node.site][node.channel]) if node.site in into else 0,
         int(out[node.site][node.channel]) if node.site in out else 0]
        for node in nodes_of(circuit)
    ]  # fmt: skip
