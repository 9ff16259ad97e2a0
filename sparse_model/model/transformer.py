"""The weight-sparse transformer (METHOD 2). Which weights are zero is training's business; see `sparsity`.

Shapes: B batch, T time, D = d_model channels, H heads, K = d_head, F = d_mlp neurons, P = d_position, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_model.errors import InputError
from sparse_model.model.abstopk import abs_topk, add_topk, gelu_topk, norm_topk
from sparse_model.model.attention import attention, side_by_side
from sparse_model.model.config import ModelConfig, ResidualPoint
from sparse_model.model.inputs import check_tokens
from sparse_model.model.loss import unembedding_loss
from sparse_model.model.norm import rms_norm
from sparse_model.model.sites import FINAL_SITE, SiteFunction, site_name, site_names

GPT2_WIDTH = 0.02
"""Standard deviation of GPT-2's initial matrices, at any width."""


class SparseTransformer(nn.Module):
    """A GPT-2 style decoder with AbsTopK activations at every node site.

    `forward` gives logits (B, T, V) in float32 for tokens (B, T). Parameters are float32; activations are of
    `compute_dtype`, which is a property of the run and not of the model.
    """

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        # whether the gradient of the bigram table is a sparse tensor of rows; an optimiser must know how to take it
        self.bigram_by_rows = False
        V, D = config.vocab_size, config.d_model
        self.embedding = nn.Parameter(torch.empty(V, D))
        self.positions: nn.Parameter | None = None
        if config.positions != "none":
            self.positions = nn.Parameter(torch.empty(config.context, config.d_position or D))
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = Norm(config, D)
        self.unembedding = self.embedding if config.tied_embeddings else nn.Parameter(torch.empty(V, D))
        self.unembedding_bias = nn.Parameter(torch.zeros(V))
        self.bigram = nn.Parameter(torch.zeros(V, V)) if config.bigram else None
        if not self.embedding.is_meta:  # shapes alone need no numbers
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values of all parameters, in their order."""
        for name, parameter in self.named_parameters():
            self.reset(name, parameter)

    def reset(self, name: str, values: Tensor) -> None:
        """Fill a tensor with the initial values of the parameter of that name and shape.

        Matrices and embeddings are Gaussian, of the width that `initial` says; those that write to the residual stream
        are scaled by 1/sqrt(2 * n_layer), as GPT-2's are. Gains are 1, all else is 0.
        """
        if name.endswith("weight"):
            residual_scale = 1 / math.sqrt(2 * self.config.n_layer) if ".out." in name or ".down." in name else 1
            nn.init.normal_(values, std=residual_scale * self._initial_width(values.shape[1]))
        elif name in ("embedding", "unembedding", "positions"):
            nn.init.normal_(values, std=self._initial_width(self.config.d_model))
        else:
            nn.init.constant_(values, 1.0 if name.endswith("gain") else 0.0)

    def _initial_width(self, inputs: int) -> float:
        return GPT2_WIDTH if self.config.initial == "gpt2" else 1 / math.sqrt(inputs)

    def forward(self, tokens: Tensor, at_site: SiteFunction | None = None, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for tokens (B, T); with targets (B, T), their mean cross-entropy in nats instead.

        `at_site` may look at or replace the activation of every node site. InputError for tokens or targets that are
        not ids (B, T) of the vocabulary, T at most the context.
        """
        if targets is None:
            return self.logits(self.final(tokens, at_site), tokens)
        stream = self._stream(tokens, at_site)
        check_tokens(targets, self.config, what="targets", ids=not self._is_learning())
        if targets.shape != tokens.shape:
            raise InputError(f"targets of shape {tuple(targets.shape)}; allowed: {tuple(tokens.shape)}, as tokens")
        return self.loss_of(stream, tokens, targets, at_site)

    def final(self, tokens: Tensor, at_site: SiteFunction | None = None) -> Tensor:
        """Activation of the last node site, final.in, (B, T, D): everything but the unembedding.

        InputError for tokens that are not ids (B, T) of the vocabulary, T at most the context.
        """
        return self._ended(self._stream(tokens, at_site), at_site)

    def _stream(self, tokens: Tensor, at_site: SiteFunction | None) -> Tensor:
        """The residual stream (B, T, D) after all layers."""
        check_tokens(tokens, self.config, ids=not self._is_learning())
        x = self.embedded(tokens)
        positions = None
        if self.positions is not None and self.config.positions == "concatenated":
            positions = self.positions[: tokens.shape[-1]]
        for layer in self.layers:
            x = layer(x, positions, self.compute_dtype, at_site)
        return x

    def embedded(self, tokens: Tensor) -> Tensor:
        """The residual stream (B, T, D) before the first layer, for tokens (B, T)."""
        x: Tensor = F.embedding(tokens, self.embedding)
        if self.positions is not None and self.config.positions == "learned":
            x = x + self.positions[: tokens.shape[-1]]
        return x

    def _ended(self, stream: Tensor, at_site: SiteFunction | None) -> Tensor:
        return _visit(at_site, FINAL_SITE, self.final_norm(stream).to(self.compute_dtype))

    def loss_of(self, stream: Tensor, tokens: Tensor, targets: Tensor, at_site: SiteFunction | None = None) -> Tensor:
        """Mean cross-entropy in nats of targets (B, T), from the residual stream (B, T, D) after all layers."""
        weights = self.unembedding, self.unembedding_bias, self.bigram
        flat = self._ended(stream, at_site).flatten(0, 1), *weights, tokens.flatten(), targets.flatten()
        return unembedding_loss(*flat, by_rows=self.bigram_by_rows and tokens.is_cpu)

    def _is_learning(self) -> bool:
        """Whether this may be a step of training, in which nothing is asked of the device."""
        return self.training and torch.is_grad_enabled()

    def logits(self, final: Tensor, tokens: Tensor) -> Tensor:
        """Logits (..., V) from final.in (..., D) and the tokens (...) at the same positions."""
        if tokens.shape != final.shape[:-1]:
            raise InputError(
                f"tokens of shape {tuple(tokens.shape)} with final.in {tuple(final.shape)}; allowed: the same"
            )
        dtype = final.dtype
        logits = F.linear(final, self.unembedding.to(dtype)).float() + self.unembedding_bias
        return logits if self.bigram is None else logits + F.embedding(tokens, self.bigram)

    @torch.no_grad()
    def capture(self, tokens: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Activations (B, T, channels) at the named sites (all by default); an unknown name is a KeyError."""
        wanted = self._known(site_names(self.config) if names is None else names)
        seen: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor) -> Tensor:
            if name in wanted:
                seen[name] = x
            return x

        self.final(tokens, keep)
        return seen

    def replace(self, tokens: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, T, V) with the named sites held at the given values (broadcast to (B, T, channels))."""
        self._known(values)
        return self.forward(tokens, lambda name, x: values[name].to(x.dtype).expand_as(x) if name in values else x)

    def _known(self, names: Iterable[str]) -> set[str]:
        wanted, known = set(names), set(site_names(self.config))
        if wanted - known:
            raise KeyError(f"no node site {sorted(wanted - known)[0]!r}; sites are layers.<i>.<kind> and {FINAL_SITE}")
        return wanted


class Block(nn.Module):
    """Attention and MLP, each reading the normed residual stream and adding to it.

    `positions` (T, P) are those that are read beside the stream; None unless they are concatenated.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.attn = Attention(config, layer)
        self.mlp = MLP(config, layer)

    def forward(self, x: Tensor, positions: Tensor | None, dtype: torch.dtype, at_site: SiteFunction | None) -> Tensor:
        x = residual(self.attn(x, positions, dtype, at_site), "resid.mid", self.config)
        x = residual(self.mlp(x, positions, dtype, at_site), "resid.post", self.config)
        return x


class Attention(nn.Module):
    """Causal attention; AbsTopK on the input, on q, k and v over all heads jointly, and on the output.

    Called with the residual stream (B, T, D), it gives the stream with its output added.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.norm = Norm(config, config.d_model)
        self.position_norm = Norm(config, config.d_position) if config.d_position else None
        self.qkv = Linear(config.width("attn.in"), 3 * config.d_attn, config.biases)
        self.out = Linear(config.d_attn, config.d_model, config.biases)
        self.sink = nn.Parameter(torch.zeros(config.n_head_)) if config.attention_sink else None

    def forward(self, x: Tensor, positions: Tensor | None, dtype: torch.dtype, at_site: SiteFunction | None) -> Tensor:
        def visit(kind: str, value: Tensor) -> Tensor:
            return value if at_site is None else at_site(site_name(self.layer, kind), value)

        read = _read(x, positions, self, self.config.survivors("attn.in"), dtype)
        kept = [self.config.survivors(kind) for kind in ("attn.q", "attn.k", "attn.v")]
        parts: Tensor = self.qkv(visit("attn.in", read))
        parts = parts.view(*parts.shape[:-1], 3, -1)
        if at_site is None and len(set(kept)) == 1:
            mixed = side_by_side(_sparse(parts, kept[0]), self.config.d_head, self.sink)
        else:
            q, k, v = (_sparse(part, k) for part, k in zip(parts.unbind(-2), kept, strict=True))
            mixed = self.attend(visit("attn.q", q), visit("attn.k", k), visit("attn.v", v))
        return _added(x, self.out(mixed), self.config.survivors("attn.out"), site_name(self.layer, "attn.out"), at_site)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal softmax attention of q, k, v, each (B, T, H * K), scaled by 1/sqrt(K)."""
        return attention(q, k, v, self.config.d_head, self.sink)


class MLP(nn.Module):
    """Up projection, GELU (or ReLU), AbsTopK, down projection.

    Called with the residual stream (B, T, D), it gives the stream with its output added.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.norm = Norm(config, config.d_model)
        self.position_norm = Norm(config, config.d_position) if config.d_position else None
        self.up = Linear(config.width("mlp.in"), config.d_mlp_, config.biases)
        self.down = Linear(config.d_mlp_, config.d_model, config.biases)

    def forward(self, x: Tensor, positions: Tensor | None, dtype: torch.dtype, at_site: SiteFunction | None) -> Tensor:
        def visit(kind: str, value: Tensor) -> Tensor:
            return value if at_site is None else at_site(site_name(self.layer, kind), value)

        read = visit("mlp.in", _read(x, positions, self, self.config.survivors("mlp.in"), dtype))
        k = self.config.survivors("mlp.act")
        if self.config.activation == "gelu" and k is not None:
            active = gelu_topk(self.up(read), k)
        else:
            active = _sparse(ACTIVATIONS[self.config.activation](self.up(read)), k)
        neurons = visit("mlp.act", active)
        out = self.down(neurons)
        return _added(x, out, self.config.survivors("mlp.out"), site_name(self.layer, "mlp.out"), at_site)


class Linear(nn.Module):
    """x @ weight.T + bias in the dtype of x; weight (out, in) and bias (out), if any, are kept in float32."""

    def __init__(self, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Norm(nn.Module):
    """RMSNorm over channels, by which zero stays zero, or LayerNorm. A gain would fold into the next matrix."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.kind, self.width = config.norm, width
        self.gain = nn.Parameter(torch.ones(width)) if config.norm_gain else None
        self.offset = nn.Parameter(torch.zeros(width)) if config.norm_offset else None

    @property
    def is_plain(self) -> bool:
        """Whether it is RMSNorm and nothing learned."""
        return self.kind == "rms" and self.gain is None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rms":
            return rms_norm(x) if self.gain is None else rms_norm(x) * self.gain
        gain, offset = (None if p is None else p.to(x.dtype) for p in (self.gain, self.offset))
        return F.layer_norm(x, (self.width,), gain, offset)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


def normed(x: Tensor, positions: Tensor | None, norm: Norm, position_norm: Norm | None) -> Tensor:
    """What a sublayer reads of the residual stream x (B, T, D): normed, and (B, T, D + P) with positions (T, P)."""
    read: Tensor = norm(x)
    if positions is None or position_norm is None:
        return read
    return torch.cat([read, position_norm(positions).expand(*x.shape[:-1], -1)], dim=-1)


def _read(x: Tensor, positions: Tensor | None, sublayer: Attention | MLP, k: int | None, dtype: torch.dtype) -> Tensor:
    """The first node site of a sublayer: what it reads of the residual stream x, in `dtype`, after AbsTopK."""
    if k is not None and positions is None and sublayer.norm.is_plain:
        return norm_topk(x, k, dtype)
    return _sparse(normed(x, positions, sublayer.norm, sublayer.position_norm).to(dtype), k)


def _added(x: Tensor, out: Tensor, k: int | None, name: str, at_site: SiteFunction | None) -> Tensor:
    """The residual stream x with a sublayer's output added, after AbsTopK at the node site of that name."""
    if at_site is None and k is not None:
        return add_topk(x, out, k)
    return x + _visit(at_site, name, _sparse(out, k))


def residual(x: Tensor, kind: ResidualPoint, config: ModelConfig) -> Tensor:
    """The residual stream (B, T, D) as it goes on from a point of it, after ReLU and AbsTopK if the model has them."""
    return _sparse(F.relu(x) if config.residual_relu else x, config.survivors(kind))


def _sparse(x: Tensor, k: int | None) -> Tensor:
    return x if k is None else abs_topk(x, k)


def _visit(at_site: SiteFunction | None, name: str, x: Tensor) -> Tensor:
    return x if at_site is None else at_site(name, x)
