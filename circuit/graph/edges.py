"""Which weights are edges of a circuit (METHOD 6): nonzero ones between two kept nodes.

The output projection reads what attention mixes out of the value channels, channel by channel, so its edges start at
attn.v. Kept attn.q and attn.k nodes end in an attention pattern and have no edges going out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from circuit.ablated.compact import Edges, layers_of
from circuit.graph.record import Edge, Node
from circuit.tasks import PairBatch
from sparse_model.model.sites import FINAL_SITE, site_name
from sparse_model.model.transformer import SparseTransformer

Kept = Mapping[str, Tensor]
"""Site name -> kept channels (S,), ascending, for every site."""


def edges_between(model: SparseTransformer, kept: Kept) -> list[Edge]:
    """Edges in qkv, out, up and down, in the order of layers, matrices, targets, sources."""
    return [
        Edge(matrix, layer, Node(source, int(kept[source][i])), Node(target, int(kept[target][o])), float(block[o, i]))
        for layer, matrix, source, target, weight in matrices(model)
        for block in [weight[kept[target]][:, kept[source]]]
        for o, i in block.nonzero().tolist()
    ]


def edges_kept(edges: list[Edge], kept: Edges | None) -> list[Edge]:
    """Those of the edges that are among `kept`; all of them where that is None."""
    if kept is None:
        return edges
    pairs = {site: set(map(tuple, pairs.tolist())) for site, pairs in kept.items()}
    return [edge for edge in edges if (edge.target.channel, edge.source.channel) in pairs.get(edge.target.site, ())]


def count_edges(model: SparseTransformer, kept: Kept) -> int:
    """len(edges_between(model, kept)), without building them."""
    blocks = (weight[kept[target]][:, kept[source]] for _, _, source, target, weight in matrices(model))
    return sum(int(block.count_nonzero()) for block in blocks)


class EdgeBlock(NamedTuple):
    """The edges between two sites: numbers `start` to `stop` of all E, by target, then source."""

    source: str
    target: str
    start: int
    stop: int


def edge_ends(model: SparseTransformer, kept: Kept, first: Mapping[str, int]) -> tuple[Tensor, Tensor, list[EdgeBlock]]:
    """(E,) the nodes that each of `edges_between` comes from and goes to, as indices `first[site]` + channel, and
    which of the edges are between which sites."""
    sources, targets, blocks, start = [], [], [], 0
    for _, _, source, target, weight in matrices(model):
        o, i = weight[kept[target]][:, kept[source]].nonzero().unbind(1)
        sources.append(kept[source][i] + first[source])
        targets.append(kept[target][o] + first[target])
        blocks.append(EdgeBlock(source, target, start, start + len(o)))
        start += len(o)
    return torch.cat(sources), torch.cat(targets), blocks


def count_embedding_edges(model: SparseTransformer, kept: Kept, data: PairBatch) -> int:
    """Nonzero embedding weights of the prompts' tokens in residual channels that some kept input node reads."""
    inputs = [kept[site] for site in kept if site.endswith((".attn.in", ".mlp.in")) or site == FINAL_SITE]
    real = torch.arange(data.tokens.shape[1]) < data.length[:, None]
    tokens = torch.unique(data.tokens[real]).to(model.embedding.device)
    channels = torch.unique(torch.cat(inputs))
    channels = channels[channels < model.config.d_model]  # the others are of concatenated positions
    return int(model.embedding[tokens][:, channels].count_nonzero())


def count_unembedding_edges(model: SparseTransformer, kept: Kept, data: PairBatch) -> int:
    """Nonzero unembedding weights of the task's answer tokens at kept final.in nodes."""
    answers = torch.unique(torch.cat([data.right, data.wrong])).to(model.unembedding.device)
    return int(model.unembedding[answers][:, kept[FINAL_SITE]].count_nonzero())


def matrices(
    model: SparseTransformer,
) -> Iterator[tuple[int, Literal["qkv", "out", "up", "down"], str, str, Tensor]]:
    """(layer, matrix, source site, target site, weight (targets, sources)) of all weights that can be edges."""
    for i, layer in enumerate(layers_of(model)):
        qkv = torch.split(layer.attn.qkv.weight.detach(), model.config.d_attn)
        for kind, weight in zip("qkv", qkv, strict=True):
            yield i, "qkv", site_name(i, "attn.in"), site_name(i, f"attn.{kind}"), weight
        yield i, "out", site_name(i, "attn.v"), site_name(i, "attn.out"), layer.attn.out.weight.detach()
        yield i, "up", site_name(i, "mlp.in"), site_name(i, "mlp.act"), layer.mlp.up.weight.detach()
        yield i, "down", site_name(i, "mlp.act"), site_name(i, "mlp.out"), layer.mlp.down.weight.detach()
