"""Mean activations against a loop, scores against the model's own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toys import whole_score

from circuit.ablated.ablation import mean_activations
from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig
from sparse_model.model.sites import site_names
from sparse_model.model.transformer import SparseTransformer


@pytest.fixture
def model() -> SparseTransformer:
    torch.manual_seed(0)
    return SparseTransformer(ModelConfig(vocab_size=30, context=16, n_layer=2, d_model=16, d_head=8))


def test_means_equal_a_loop_over_sequences_of_any_length(model: SparseTransformer) -> None:
    batches = [torch.randint(0, 30, (3, 16)), torch.randint(0, 30, (2, 7))]
    means = mean_activations(model, batches)
    rows = {name: [] for name in site_names(model.config)}
    for batch in batches:
        for sequence in batch:
            for name, activation in model.capture(sequence[None]).items():
                rows[name] += list(activation[0].double())
    assert list(means) == site_names(model.config)
    for name, values in rows.items():
        torch.testing.assert_close(means[name], torch.stack(values).mean(0).float(), rtol=1e-5, atol=1e-7)
        assert means[name].dtype == torch.float32


def test_means_are_of_float32_activations_whatever_the_model_was_trained_in(model: SparseTransformer) -> None:
    batch = torch.randint(0, 30, (3, 16))
    wanted = mean_activations(model, [batch])
    model.compute_dtype = torch.bfloat16
    got = mean_activations(model, [batch])
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert model.compute_dtype == torch.bfloat16


def test_no_text_is_refused(model: SparseTransformer) -> None:
    with pytest.raises(InputError, match="0 tokens"):
        mean_activations(model, [])


def test_scores_equal_those_of_the_full_logits(planted: Any) -> None:
    data = planted.task.train
    with torch.no_grad():
        rows = [planted.model(data.tokens[i : i + 1, :n])[0, -1] for i, n in enumerate(data.length)]
    two = torch.stack([torch.stack([r[a], r[b]]) for r, a, b in zip(rows, data.right, data.wrong, strict=True)])
    score = whole_score(planted.model, data)
    assert score.loss == pytest.approx(float(F.cross_entropy(two, torch.zeros(len(two), dtype=torch.long))), rel=1e-5)
    assert score.accuracy == float((two[:, 0] > two[:, 1]).float().mean())
    flipped = whole_score(planted.model, data.shuffled(0))
    assert 0.2 < flipped.accuracy < 0.8
