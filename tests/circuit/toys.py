"""Random models of every kind, random prompts and random nodes, shared by the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.search.evaluation import Judge, Score
from circuit.tasks import PairBatch
from sparse_model.model.config import ModelConfig
from sparse_model.model.sites import site_names, site_width
from sparse_model.model.transformer import SparseTransformer

VARIANTS = {
    "plain": {},
    "dense": {"activation_fraction": 1.0},
    "everything": {"norm_gain": True, "positions": "learned", "attention_sink": True},
    "no_bigram": {"bigram": False, "activation_fraction": 0.1},
    "few_sites": {"sparse_sites": ("attn.in", "attn.v", "mlp.act"), "activation": "relu"},
    "sparse_stream": {"sparse_sites": ("mlp.out", "resid.mid", "resid.post"), "residual_relu": True},
    "layer_norm": {"norm": "layer", "norm_gain": True, "norm_offset": True, "tied_embeddings": True, "biases": False},
    "wide_heads": {"n_head": 3, "d_head": 16, "d_mlp": 40, "norm": "layer", "attention_sink": True},
    "concatenated": {"positions": "concatenated", "d_position": 12, "norm_gain": True, "activation": "relu"},
}


def random_model(variant: str, weight_fraction: float = 1.0, seed: int = 0) -> SparseTransformer:
    torch.manual_seed(seed)
    options = {"vocab_size": 30, "context": 16, "n_layer": 3, "d_model": 32, "d_head": 8} | VARIANTS[variant]
    model = SparseTransformer(ModelConfig.model_validate(options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
            parameter.mul_(torch.rand_like(parameter) < weight_fraction)
    return model


def random_pairs(n_pairs: int = 9, longest: int = 12, vocabulary: int = 30) -> PairBatch:
    generator = torch.Generator().manual_seed(1)

    def draw(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, size, generator=generator)

    length = draw(3, longest + 1, 2 * n_pairs)
    length[0] = longest
    right = draw(0, vocabulary, 2 * n_pairs)
    wrong = (right + draw(1, vocabulary, 2 * n_pairs)) % vocabulary
    return PairBatch(draw(0, vocabulary, 2 * n_pairs, longest), length, right, wrong)


def random_nodes(model: SparseTransformer, share: float, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = {name: site_width(model.config, name) for name in site_names(model.config)}
    return {n: (torch.rand(w, generator=generator) < share).nonzero().squeeze(1) for n, w in widths.items()}


def zero_means(model: SparseTransformer) -> Means:
    """As if every activation were zero on average; where nothing is ablated, means do not matter."""
    return {site: torch.zeros(site_width(model.config, site)) for site in site_names(model.config)}


def whole_score(model: SparseTransformer, data: PairBatch) -> Score:
    """Score of the whole model, its logits as they are."""
    judge = Judge(model, zero_means(model), data)
    return judge.score(judge.everything())
