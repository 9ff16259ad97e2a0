"""A head planted by hand that finds a marked cue, and prompts for it: what the planted models of several tests share.

A prompt holds decoys, one marked cue and, last, a question. Head 0 of a layer attends from the question to the mark, by
query and key channel 0, and copies its sign through value channel 1.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from circuit.tasks import PairBatch
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer

DECOYS, CUES, QUESTION, FILLERS, ANSWERS = (0, 1), (2, 3), 4, (5, 6, 7, 8, 9), (10, 11)
SIGN, MARK, ASK, READ = 0, 1, 2, 5
"""Residual channels: three that the embedding writes, and one that the head writes to."""


def model_with_head(scale: float, layer: int, own: Sequence[int]) -> SparseTransformer:
    """Two layers, width 16, heads of 4; the head is in `layer`. All else is random and stays off channels `own`."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=12, context=24, n_layer=2, d_model=16, d_head=4, activation_fraction=1, bigram=False
    )
    model = SparseTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.2))
        _plant_embedding(model, list(own))
        _plant_head(model, layer)
    return model


def _plant_embedding(model: SparseTransformer, own: list[int]) -> None:
    for layer in model.layers:
        for weight in (layer.attn.out, layer.mlp.down):
            weight.weight[own] = 0
            weight.bias[own] = 0
    model.embedding[:, own] = 0
    model.embedding[[DECOYS[0], CUES[0]], SIGN] = 1.0
    model.embedding[[DECOYS[1], CUES[1]], SIGN] = -1.0
    model.embedding[list(CUES), MARK] = 1.0
    model.embedding[:, ASK] = -1.0
    model.embedding[QUESTION, ASK] = 1.0


def _plant_head(model: SparseTransformer, layer: int) -> None:
    attention, D = model.layers[layer].attn, 16
    for start in (0, D, 2 * D):
        attention.qkv.weight[start : start + 4] = 0
        attention.qkv.bias[start : start + 4] = 0
    attention.out.weight[:, :4] = 0
    attention.qkv.weight[0, ASK] = 6.0
    attention.qkv.weight[D, MARK] = 6.0
    attention.qkv.weight[2 * D + 1, SIGN] = 3.0
    attention.out.weight[READ, 1] = 3.0


def write_answer(model: SparseTransformer, channel: int, weight: float) -> None:
    """The sign of a residual channel decides the answer, and nothing else does."""
    with torch.no_grad():
        model.unembedding[list(ANSWERS)] = 0
        model.unembedding[ANSWERS[0], channel], model.unembedding[ANSWERS[1], channel] = weight, -weight
        model.unembedding_bias.zero_()


def cued_prompts(n_pairs: int, seed: int, shortest: int, longest: int) -> PairBatch:
    """Pairs of prompts that differ in their cue; so many tokens before the question, half decoys of random sign."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n_pairs):
        body = [rng.choice(rng.choice((DECOYS, FILLERS))) for _ in range(rng.randint(shortest, longest))]
        place = rng.randrange(len(body))
        rows += [[*body[:place], cue, *body[place + 1 :], QUESTION] for cue in CUES]
    width = max(map(len, rows))
    return PairBatch(
        tokens=torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]),
        length=torch.tensor([len(row) for row in rows]),
        right=torch.tensor(ANSWERS * n_pairs),
        wrong=torch.tensor(ANSWERS[::-1] * n_pairs),
    )


def model_of_last_token(data: PairBatch, config: ModelConfig, seed: int) -> SparseTransformer:
    """A model that does a task through one channel: the last token of a prompt writes it, the answers read it."""
    torch.manual_seed(seed)
    model = SparseTransformer(config)
    with torch.no_grad():
        model.embedding.mul_(0.05)
        model.unembedding.mul_(0.05)
        model.embedding[:, 0] = 0
        for row in range(len(data.length)):
            model.embedding[data.tokens[row, data.length[row] - 1], 0] = 5.0 - 10 * (row % 2)
        model.unembedding[:, 0] = -1.0
        model.unembedding[data.right[0], 0] = 1.0
    return model
