"""Tokens of other axes, types and ranges are refused by every public function that takes some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from circuit.ablated.ablation import mean_activations
from circuit.graph.record import Node
from circuit.inspect.contexts import contexts
from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.training.measures import evaluate

MODEL = SparseTransformer(ModelConfig(vocab_size=20, context=8, n_layer=1, d_model=16, d_head=4)).eval()
TOKENS = torch.arange(16).view(2, 8)
READERS: dict[str, Callable[[Any], Any]] = {
    "model": MODEL,
    "loss": lambda tokens: MODEL(tokens, targets=TOKENS),
    "targets": lambda tokens: MODEL(TOKENS, targets=tokens),
    "final": MODEL.final,
    "capture": MODEL.capture,
    "replace": lambda tokens: MODEL.replace(tokens, {}),
    "means of one tensor": lambda tokens: mean_activations(MODEL, tokens),
    "means of batches": lambda tokens: mean_activations(MODEL, [tokens]),
    "contexts": lambda tokens: contexts(MODEL, [Node("final.in", 0)], tokens),
    "evaluate": lambda tokens: evaluate(MODEL, [tokens]),
}
BAD: dict[str, tuple[Any, str]] = {
    "one sequence": (torch.arange(8), r"of shape \(8,\); allowed: \(B, T\).*; one sequence is a batch of one"),
    "one id": (torch.tensor(3), r"of shape \(\); allowed: \(B, T\)"),
    "three axes": (TOKENS[None], r"of shape \(1, 2, 8\); allowed: \(B, T\)"),
    "no sequence": (TOKENS[:0], r"of shape \(0, 8\); allowed: \(B, T\) with at least one token"),
    "floats": (TOKENS.float(), r"of torch\.float32; allowed: torch\.int64, torch\.int32"),
    "booleans": (TOKENS > 3, r"of torch\.bool; allowed"),
    "bytes": (TOKENS.to(torch.uint8), r"of torch\.uint8; allowed"),
    "negative": (TOKENS - 1, "id -1; allowed: 0 to 19"),
    "ignored by torch": (torch.full((2, 8), -100), "id -100; allowed: 0 to 19"),
    "too large": (TOKENS + 5, "id 20; allowed: 0 to 19"),
    "too long": (torch.zeros(2, 10, dtype=torch.long), "sequence of 10 tokens; the model's context is 8"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_batch_of_tokens_is_refused(reader: str, bad: str) -> None:
    tokens, words = BAD[bad]
    with pytest.raises(InputError, match=words) as refused:
        READERS[reader](tokens)
    assert "\n" not in str(refused.value)


def test_lists_are_refused_and_targets_have_the_shape_of_the_tokens() -> None:
    with pytest.raises(InputError, match=r"tokens: a list; allowed: a tensor of token ids \(B, T\)"):
        MODEL(TOKENS.tolist())
    with pytest.raises(InputError, match=r"targets of shape \(2, 7\); allowed: \(2, 8\), as tokens"):
        MODEL(TOKENS, targets=TOKENS[:, 1:])
    with pytest.raises(InputError, match=r"tokens of shape \(2, 7\) with final.in \(2, 8, 16\)"):
        MODEL.logits(MODEL.final(TOKENS), TOKENS[:, 1:])


def test_what_is_sound_is_read() -> None:
    assert torch.equal(MODEL(TOKENS.int()), MODEL(TOKENS))
    whole, batches = mean_activations(MODEL, TOKENS), mean_activations(MODEL, [TOKENS[:1], TOKENS[1:]])
    assert whole.keys() == batches.keys()
    assert all(torch.allclose(whole[name], batches[name]) for name in whole)
    alone = mean_activations(MODEL, TOKENS[:1])
    assert torch.allclose(alone["final.in"], MODEL.capture(TOKENS[:1])["final.in"].mean((0, 1)))
