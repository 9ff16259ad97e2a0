"""The model with most of its nodes ablated, computing only what can still vary.

An ablated node is a constant (its mean), so its column of the next matrix folds into that matrix's bias. A row
whose inputs are all ablated is a constant too. What must not be dropped is its part in AbsTopK: the k largest are
taken over *all* channels of a site before ablation, so constants compete with the rest, once sorted, through
`survivors.kth_largest`. The result equals `SparseTransformer` with its sites replaced, up to rounding.

Shapes: B batch, T time, D = d_model, C channels of a site, S kept channels of a site, H heads, K = d_head,
P = d_position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.ablated.batches import AnswerBatch
from circuit.ablated.survivors import survive
from sparse_model.model.config import ModelConfig
from sparse_model.model.sites import FINAL_SITE, site_kind, site_name, site_names
from sparse_model.model.transformer import (
    ACTIVATIONS,
    MLP,
    Attention,
    Block,
    Linear,
    Norm,
    SparseTransformer,
    normed,
    residual,
)

Nodes = Mapping[str, Tensor]
"""Site name -> (S,) kept channels, ascending; sites without a kept node may be left out."""

Edges = Mapping[str, Tensor]
"""Target site -> (E, 2) kept edges into it as (target channel, source channel); sites without one may be left out."""


Visit = Callable[[str, Tensor, Tensor], Tensor]
"""Called with (site name, kept channels (S,), their values (B, T, S) or, at answer positions only, (B, 1, S)); what it
returns takes their place. Kept q and k nodes of a head without a kept value do nothing and are not visited."""


@dataclass(frozen=True)
class Gates:
    """How much passes: the rest is a mean.

    `nodes`: site -> (C,) of each node's own value. `edges`: target site -> (S', S) of each source's own value along a
    weight, in the order of the site's `Projection`. Sites that are left out are open. With one more axis in front,
    (M, ...), each of M equal parts of the batch has gates of its own.
    """

    nodes: Mapping[str, Tensor] = field(default_factory=dict)
    edges: Mapping[str, Tensor] = field(default_factory=dict)


OPEN = Gates()


class Projection(NamedTuple):
    """The weights (S', S) between kept nodes, from channels `inputs` (S,) of a site to `outputs` (S',) of another."""

    source: str
    target: str
    inputs: Tensor
    outputs: Tensor
    weight: Tensor


class Stream(NamedTuple):
    """The residual stream x (B, T, D) between two sublayers, and the positions (T, P) read beside it, if any; behind
    the last attention that writes only answer positions are left: (B, 1, D) and (B, 1, P)."""

    x: Tensor
    positions: Tensor | None

    def repeated(self, count: int) -> Stream:
        """The same for `count` copies of the batch, one after the other."""
        positions = self.positions
        if positions is not None and positions.dim() == 3:
            positions = positions.repeat(count, 1, 1)
        return Stream(self.x.repeat(count, 1, 1), positions)


def stage_of(site: str, config: ModelConfig) -> int:
    """The sublayer that a node site is in: attention and MLP of each layer in turn, then final.in."""
    if site == FINAL_SITE:
        return 2 * config.n_layer
    _, layer, kind = site.split(".", 2)
    return 2 * int(layer) + kind.startswith("mlp")


class AblatedModel:
    """A `SparseTransformer` in which every node outside `kept` is held at its mean.

    With `edges`, a weight between kept nodes that is not among them is removed: to its target, its source is at its
    mean, so that weight * mean is part of the target's bias. Weights from kept nodes to others are left as they are:
    all that becomes of those is what they weigh in AbsTopK.
    Weights are copied in cut form, without gradient; gradients flow to the gates only. `visit` may look at or replace
    the values of kept nodes, after AbsTopK.
    """

    def __init__(
        self,
        model: SparseTransformer,
        means: Means,
        kept: Nodes,
        edges: Edges | None = None,
        visit: Visit | None = None,
    ) -> None:
        cut = _Cut(model.config, means, kept, edges, visit)
        self.config = model.config
        self.embedding = model.embedding.detach()
        self.positions = None if model.positions is None else model.positions.detach()
        self.attention = [_Attention(layer.attn, i, cut) for i, layer in enumerate(layers_of(model))]
        self.mlp = [_MLP(layer.mlp, i, cut) for i, layer in enumerate(layers_of(model))]
        self.final = _Read(model.final_norm, None, FINAL_SITE, cut)
        self.answers = _Answers(model, cut)
        self.last_attention = max((i for i, attention in enumerate(self.attention) if attention.writes), default=-1)

    def margins(self, batch: AnswerBatch, gates: Gates = OPEN) -> Tensor:
        """Margins (B,) logit(right) - logit(wrong) at the answer positions, in nats."""
        stream = self.start(batch)
        for stage in range(self.stages):
            stream = self.sublayer(stage, stream, batch, gates)
        return self.end(stream, batch, gates)

    @property
    def stages(self) -> int:
        """Number of sublayers; `stage_of` tells in which of them a node site is."""
        return 2 * len(self.attention)

    def start(self, batch: AnswerBatch) -> Stream:
        """The residual stream before the first sublayer."""
        x, positions = self._embed(batch.tokens)
        if self.last_attention < 0:
            return Stream(_at(x, batch.last), _positions_at(positions, batch.last))
        return Stream(x, positions)

    def sublayer(self, stage: int, stream: Stream, batch: AnswerBatch, gates: Gates = OPEN) -> Stream:
        """The residual stream after a sublayer, from that before it."""
        (x, positions), layer = stream, stage // 2
        if stage % 2:
            return Stream(residual(self.mlp[layer](x, positions, gates), "resid.post", self.config), positions)
        last = batch.last if layer == self.last_attention else None
        x = residual(self.attention[layer](x, positions, gates, last), "resid.mid", self.config)
        return Stream(x, positions if last is None else _positions_at(positions, last))

    def end(self, stream: Stream, batch: AnswerBatch, gates: Gates = OPEN) -> Tensor:
        """Margins (B,) from the residual stream after the last sublayer."""
        return self.answers(self.final(stream.x, None, gates).squeeze(1), batch)

    def _embed(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The residual stream (B, T, D) at its start, and the positions (T, P) to be read beside it, if any."""
        x = F.embedding(tokens, self.embedding)
        if self.positions is None:
            return x, None
        positions = self.positions[: x.shape[1]]
        return (x, positions) if self.config.positions == "concatenated" else (x + positions, None)

    def add_input(self, site: str, channel: int, amount: float) -> None:
        """Add a constant to what a kept node at an attn.q, k, v, out or mlp.act, out site reads."""
        layers = zip(self.attention, self.mlp, strict=True)
        every = [project for a, m in layers for project in (*a.project.values(), a.out, m.up, m.down)]
        for project in every:
            if project.between.target == site:
                project.bias = project.bias + amount * (project.kept == channel)

    def projections(self) -> list[Projection]:
        """The matrices between kept nodes, in the order of a forward pass."""
        layers = zip(self.attention, self.mlp, strict=True)
        return [project.between for a, m in layers for project in (*a.project.values(), a.out, m.up, m.down)]


def layers_of(model: SparseTransformer) -> list[Block]:
    """The layers, with their type."""
    return [cast(Block, layer) for layer in model.layers]


class _Cut:
    """What is kept, and the constants in place of what is not."""

    def __init__(
        self, config: ModelConfig, means: Means, kept: Nodes, edges: Edges | None, visit: Visit | None
    ) -> None:
        device = means[FINAL_SITE].device
        empty = torch.zeros(0, dtype=torch.long, device=device)
        self.config, self.means, self.edges, self.visit = config, means, edges, visit
        self.kept = {name: kept.get(name, empty) for name in site_names(config)}

    def survivors(self, site: str) -> int | None:
        """k of AbsTopK at a site; None where nothing is dropped."""
        return self.config.survivors(site_kind(site))

    def removed(self, target: str, outputs: Tensor, inputs: Tensor, nodes: Tensor) -> Tensor | None:
        """(S', S) true where a weight between kept nodes, `nodes` (S,) of the inputs, is no edge; None if all are."""
        if self.edges is None:
            return None
        removed = torch.ones(len(outputs), len(inputs), dtype=torch.bool, device=outputs.device)
        edges = self.edges.get(target, outputs.new_zeros(0, 2))
        edges = edges[torch.isin(edges[:, 0], outputs) & torch.isin(edges[:, 1], inputs)]
        rows, columns = (ends.contiguous() for ends in edges.unbind(1))
        removed[torch.searchsorted(outputs, rows), torch.searchsorted(inputs, columns)] = False
        return removed & nodes


class _Gate:
    """Kept channels x (..., S) of a site, let through as far as their gates are open; the rest is their mean."""

    def __init__(self, site: str, channels: Tensor, cut: _Cut) -> None:
        self.site, self.channels, self.mean = site, channels, cut.means[site][channels]
        self.visit = cut.visit

    def __call__(self, x: Tensor, gates: Gates) -> Tensor:
        if self.visit is not None:
            x = self.visit(self.site, self.channels, x)
        if self.site not in gates.nodes:
            return x
        gate = gates.nodes[self.site].index_select(-1, self.channels)
        if gate.dim() == 2:
            gate = gate.repeat_interleave(len(x) // len(gate), 0).unsqueeze(1)
        return torch.lerp(self.mean, x, gate)


class _Read:
    """An input site: the normed residual stream. Called with x (B, T, D), gives its kept channels (B, T, S).

    `positions` (T, P), or (B, T, P) where x has other positions in each row, are read beside it if the model does so.
    """

    def __init__(self, norm: Norm, position_norm: Norm | None, site: str, cut: _Cut) -> None:
        self.norm = _frozen(norm)
        self.position_norm = None if position_norm is None else _frozen(position_norm)
        self.kept = cut.kept[site]
        self.gate = _Gate(site, self.kept, cut)
        self.k = cut.survivors(site)

    def __call__(self, x: Tensor, positions: Tensor | None, gates: Gates) -> Tensor:
        read = normed(x, positions, self.norm, self.position_norm)
        value = read.index_select(-1, self.kept)
        if self.k is not None and len(self.kept):
            value = value * survive(read, value, self.k, None)
        return self.gate(value, gates)


def _frozen(norm: Norm) -> Norm:
    """A norm without gradients: a copy, where it has parameters to copy."""
    return deepcopy(norm).requires_grad_(False) if list(norm.parameters()) else norm


class _Project:
    """A matrix, its activation function and the AbsTopK of the site it writes to, cut to kept channels.

    Called with the kept channels of its source (B, T, S), gives those of its target (B, T, S').
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        source: tuple[str, Tensor],
        target: tuple[str, Tensor],
        cut: _Cut,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        (source_site, inputs), (site, self.kept) = source, target
        self.source_mean = cut.means[source_site][inputs]
        self.gate = _Gate(site, self.kept, cut)
        self.activation, self.k = activation, cut.survivors(site)
        constant = cut.means[source_site].clone()
        constant[inputs] = 0
        columns, base = weight.detach()[:, inputs], bias.detach() + weight.detach() @ constant
        self.weight, self.bias = columns[self.kept].contiguous(), base[self.kept]
        # under an attention sink ablated value channels vary as well, being mixed with nothing: they are no nodes
        nodes = torch.isin(inputs, cut.kept[source_site])
        if (removed := cut.removed(site, self.kept, inputs, nodes)) is not None:
            self.bias = self.bias + (self.weight * removed) @ self.source_mean
            self.weight = self.weight.masked_fill(removed, 0)
        self.between = Projection(source_site, site, inputs, self.kept, self.weight * nodes)
        self.other_weight, self.other_bias = columns[:0], base[:0]
        self.constants: Tensor | None = None
        if self.k is not None:
            self._keep_competitors(columns, base)

    def _keep_competitors(self, columns: Tensor, base: Tensor) -> None:
        """Rows that are not kept but vary; of those that do not vary, only their sorted magnitudes."""
        assert self.k is not None
        varies = columns.ne(0).any(1)
        fixed = ~varies
        varies[self.kept] = fixed[self.kept] = False
        others = varies.nonzero().squeeze(1)
        self.other_weight, self.other_bias = columns[others], base[others]
        self.constants = self._activate(base[fixed]).abs().sort(descending=True).values[: self.k]

    def __call__(self, x: Tensor, gates: Gates) -> Tensor:
        value = self._activate(self._project(x, gates.edges.get(self.gate.site)))
        if self.k is not None and len(self.kept):
            rivals = value.detach()
            if len(self.other_bias):
                with torch.no_grad():
                    others = self._activate(_linear(x, self.other_weight, self.other_bias))
                rivals = torch.cat([rivals, others], -1)
            value = value * survive(rivals, value, self.k, self.constants)
        return self.gate(value, gates)

    def _project(self, x: Tensor, gate: Tensor | None) -> Tensor:
        if gate is None:
            return _linear(x, self.weight, self.bias)
        weight = self.weight * gate
        bias = self.bias + (self.weight - weight) @ self.source_mean
        if gate.dim() == 2:
            return _linear(x, weight, bias)
        parts = x.reshape(len(gate), x.shape[:-1].numel() // len(gate), x.shape[-1])
        return torch.baddbmm(bias.unsqueeze(1), parts, weight.mT).view(*x.shape[:-1], len(self.kept))

    def _activate(self, x: Tensor) -> Tensor:
        return x if self.activation is None else self.activation(x)


class _Fill:
    """Kept channels (..., S) spread over `channels` of a site (..., C'), the others being their mean or zero."""

    def __init__(self, site: str, kept: Tensor, channels: Tensor, cut: _Cut) -> None:
        self.constant = cut.means[site][channels].clone()
        place = torch.searchsorted(channels, kept)
        self.complete = len(kept) == len(channels)
        self.spread = torch.zeros(len(channels), len(kept), device=channels.device)
        self.spread[place, torch.arange(len(kept), device=channels.device)] = 1
        self.constant[place] = 0

    def __call__(self, y: Tensor) -> Tensor:
        return y if self.complete else _linear(y, self.spread, self.constant)


class _Attention:
    """Attention sublayer: called with the residual stream (B, T, D), gives the next.

    With `last` (B,) queries, outputs and the stream that is returned (B, 1, D) are those of the answer positions.
    """

    def __init__(self, attention: Attention, layer: int, cut: _Cut) -> None:
        site = {kind: site_name(layer, f"attn.{kind}") for kind in ("in", "q", "k", "v", "out")}
        d_attn, self.d_head = cut.config.d_attn, cut.config.d_head
        device = attention.qkv.weight.device
        self.read = _Read(attention.norm, attention.position_norm, site["in"], cut)
        # shares of a softmax without sink add up to 1: an ablated value channel stays its mean, whatever q and k do
        mixed = cut.kept[site["v"]] if attention.sink is None else torch.arange(d_attn, device=device)
        heads = torch.unique(mixed // self.d_head)
        channels = (heads[:, None] * self.d_head + torch.arange(self.d_head, device=heads.device)).flatten()
        self.mixed = torch.searchsorted(channels, mixed)
        self.sink = None if attention.sink is None else attention.sink.detach()[heads]
        self.project, self.fill = {}, {}
        for kind, weight, bias in zip(
            "qkv", torch.split(attention.qkv.weight, d_attn), torch.split(_bias(attention.qkv), d_attn), strict=True
        ):
            kept = cut.kept[site[kind]]
            kept = kept[torch.isin(kept // self.d_head, heads)]
            target = (site[kind], kept)
            self.project[kind] = _Project(weight, bias, (site["in"], self.read.kept), target, cut)
            self.fill[kind] = _Fill(site[kind], kept, channels, cut)
        out = (site["out"], cut.kept[site["out"]])
        self.out = _Project(attention.out.weight, _bias(attention.out), (site["v"], mixed), out, cut)
        self.write = _Fill(*out, torch.arange(cut.config.d_model, device=device), cut)
        self.writes = len(out[1]) > 0

    def __call__(self, x: Tensor, positions: Tensor | None, gates: Gates, last: Tensor | None) -> Tensor:
        if not self.writes:
            return x + self.write.constant
        read = self.read(x, positions, gates)
        asking = read if last is None else _at(read, last)
        q = self._heads("q", asking, gates)
        k, v = (self._heads(kind, read, gates) for kind in "kv")
        mixed = self._mix(q, k, v, last).transpose(1, 2).flatten(-2).index_select(-1, self.mixed)
        x = x if last is None else _at(x, last)
        return x + self.write(self.out(mixed, gates))

    def _heads(self, kind: str, read: Tensor, gates: Gates) -> Tensor:
        """(B, H, T, K) of the heads that matter."""
        channels = self.fill[kind](self.project[kind](read, gates))
        return torch.unflatten(channels, -1, (-1, self.d_head)).transpose(1, 2)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, last: Tensor | None) -> Tensor:
        """Causal attention (B, H, 1 or T, K)."""
        if not q.shape[1]:
            return q  # no head is left: torch 2.11's attention on a CPU divides by their number
        library = self.sink is None and not _by_products(q)
        if library and last is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        position = torch.arange(k.shape[-2], device=k.device)
        seen = position <= (position[:, None] if last is None else last[:, None, None, None])
        if library:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(self.d_head)).masked_fill(~seen, -math.inf)
        if self.sink is None:
            return scores.softmax(-1) @ v
        column = self.sink.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear; on a GPU in two calls, since cuBLASLt, which adds the bias, can divide by zero and end the process."""
    return x @ weight.mT + bias if _by_products(x) else F.linear(x, weight, bias)


def _by_products(q: Tensor) -> bool:
    """Whether to multiply and sum: on a GPU the library's backward pass in float32 fails on what shares its memory."""
    return q.is_cuda


class _MLP:
    """MLP sublayer: called with the residual stream (B, T, D), gives the next."""

    def __init__(self, mlp: MLP, layer: int, cut: _Cut) -> None:
        sites = [site_name(layer, f"mlp.{kind}") for kind in ("in", "act", "out")]
        read, act, out = ((site, cut.kept[site]) for site in sites)
        self.read = _Read(mlp.norm, mlp.position_norm, sites[0], cut)
        self.up = _Project(mlp.up.weight, _bias(mlp.up), read, act, cut, ACTIVATIONS[cut.config.activation])
        self.down = _Project(mlp.down.weight, _bias(mlp.down), act, out, cut)
        self.write = _Fill(*out, torch.arange(cut.config.d_model, device=out[1].device), cut)
        self.writes = len(out[1]) > 0

    def __call__(self, x: Tensor, positions: Tensor | None, gates: Gates) -> Tensor:
        if not self.writes:
            return x + self.write.constant
        return x + self.write(self.down(self.up(self.read(x, positions, gates), gates), gates))


class _Answers:
    """The unembedding, of the two answers only: final.in (B, S) to margins (B,)."""

    def __init__(self, model: SparseTransformer, cut: _Cut) -> None:
        self.unembedding, self.bias = model.unembedding.detach(), model.unembedding_bias.detach()
        self.bigram = None if model.bigram is None else model.bigram.detach()
        self.fill = _Fill(
            FINAL_SITE, cut.kept[FINAL_SITE], torch.arange(cut.config.d_model, device=self.bias.device), cut
        )

    def __call__(self, final: Tensor, batch: AnswerBatch) -> Tensor:
        direction = self.unembedding[batch.right] - self.unembedding[batch.wrong]
        margins = (self.fill(final) * direction).sum(-1) + self.bias[batch.right] - self.bias[batch.wrong]
        if self.bigram is not None:
            token = batch.tokens.gather(1, batch.last[:, None]).squeeze(1)
            margins = margins + self.bigram[token, batch.right] - self.bigram[token, batch.wrong]
        return margins


def _bias(linear: Linear) -> Tensor:
    return linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias


def _positions_at(positions: Tensor | None, last: Tensor) -> Tensor | None:
    """(B, 1, P) of positions (T, P) at `last` (B,)."""
    return None if positions is None else positions[last][:, None]


def _at(x: Tensor, last: Tensor) -> Tensor:
    """(B, 1, C) of x (B, T, C) at positions `last` (B,)."""
    return x.take_along_dim(last[:, None, None], 1)
