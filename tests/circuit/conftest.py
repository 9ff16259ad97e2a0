"""A transformer with a task planted by hand, shared by the tests of this folder.

A prompt holds decoys, one marked cue and, last, a question. The right answer is the sign of the marked cue. In layer 1
the question attends to the mark and copies the sign; everything else in the model is random weights.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch

from circuit.ablated.ablation import Means, mean_activations
from circuit.tasks import PairBatch, TaskData
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer

DECOYS, CUES, QUESTION, FILLERS, ANSWERS = (0, 1), (2, 3), 4, (5, 6, 7, 8, 9), (10, 11)
SIGN, MARK, ASK = 0, 1, 2  # residual channels that the embedding writes
READ = 5  # residual channel that attn.out writes and final.in reads


class Planted(NamedTuple):
    """The model, prompts of its task, its means, and the nodes that do the task."""

    model: SparseTransformer
    task: TaskData
    means: Means
    nodes: dict[str, tuple[int, ...]]
    edges: set[tuple[str, int, int]]


def planted_model() -> SparseTransformer:
    """Two layers, width 16, heads of 4; layer 1's head 0 does the task."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=12, context=24, n_layer=2, d_model=16, d_head=4, activation_fraction=1, bigram=False
    )
    model = SparseTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.2))
        _plant_embeddings(model)
        _plant_head(model)
    return model


def _plant_embeddings(model: SparseTransformer) -> None:
    for layer in model.layers:  # what is planted stays alone in its residual channels
        for weight in (layer.attn.out, layer.mlp.down):
            weight.weight[[SIGN, MARK, ASK, READ]] = 0
            weight.bias[[SIGN, MARK, ASK, READ]] = 0
    model.embedding[:, [SIGN, MARK, ASK, READ]] = 0
    model.embedding[[DECOYS[0], CUES[0]], SIGN] = 1.0
    model.embedding[[DECOYS[1], CUES[1]], SIGN] = -1.0
    model.embedding[list(CUES), MARK] = 1.0
    model.embedding[:, ASK] = -1.0
    model.embedding[QUESTION, ASK] = 1.0
    model.unembedding[list(ANSWERS)] = 0
    model.unembedding[ANSWERS[0], READ], model.unembedding[ANSWERS[1], READ] = 0.8, -0.8
    model.unembedding_bias.zero_()


def _plant_head(model: SparseTransformer) -> None:
    attention, D = model.layers[1].attn, 16
    for start in (0, D, 2 * D):
        attention.qkv.weight[start : start + 4] = 0
        attention.qkv.bias[start : start + 4] = 0
    attention.out.weight[:, :4] = 0
    attention.qkv.weight[0, ASK] = 6.0
    attention.qkv.weight[D, MARK] = 6.0
    attention.qkv.weight[2 * D + 1, SIGN] = 3.0
    attention.out.weight[READ, 1] = 3.0


def planted_prompts(n_pairs: int, seed: int) -> PairBatch:
    """Prompts of 10 to 18 tokens: half of the tokens before the question are decoys of random sign."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n_pairs):
        body = [rng.choice(rng.choice((DECOYS, FILLERS))) for _ in range(rng.randint(9, 17))]
        place = rng.randrange(len(body))
        rows += [[*body[:place], cue, *body[place + 1 :], QUESTION] for cue in CUES]
    longest = max(map(len, rows))
    return PairBatch(
        tokens=torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows]),
        length=torch.tensor([len(row) for row in rows]),
        right=torch.tensor(ANSWERS * n_pairs),
        wrong=torch.tensor(ANSWERS[::-1] * n_pairs),
    )


@pytest.fixture(scope="session")
def planted() -> Planted:
    model = planted_model()
    task = TaskData("planted", train=planted_prompts(64, 0), heldout=planted_prompts(64, 1))
    text = torch.randint(0, 10, (64, 24), generator=torch.Generator().manual_seed(5))
    nodes = {
        "layers.1.attn.in": (SIGN, MARK, ASK),
        "layers.1.attn.q": (0,),
        "layers.1.attn.k": (0,),
        "layers.1.attn.v": (1,),
        "layers.1.attn.out": (READ,),
        "final.in": (READ,),
    }
    edges = {("attn.q", ASK, 0), ("attn.k", MARK, 0), ("attn.v", SIGN, 1), ("attn.out", 1, READ)}
    return Planted(model, task, mean_activations(model, [text]), nodes, edges)
