"""A transformer with a task planted by hand, shared by the tests of this folder: see `planting`.

The right answer is the sign of the marked cue, which layer 1 fetches.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from planting import ASK, MARK, READ, SIGN, cued_prompts, model_with_head, write_answer

from circuit.ablated.ablation import Means, mean_activations
from circuit.tasks import PairBatch, TaskData
from sparse_model.model.transformer import SparseTransformer


class Planted(NamedTuple):
    """The model, prompts of its task, its means, and the nodes that do the task."""

    model: SparseTransformer
    task: TaskData
    means: Means
    nodes: dict[str, tuple[int, ...]]
    edges: set[tuple[str, int, int]]


def planted_model() -> SparseTransformer:
    """Layer 1's head 0 does the task."""
    model = model_with_head(0.3, layer=1, own=(SIGN, MARK, ASK, READ))
    write_answer(model, READ, 0.8)
    return model


def planted_prompts(n_pairs: int, seed: int) -> PairBatch:
    return cued_prompts(n_pairs, seed, 9, 17)


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
