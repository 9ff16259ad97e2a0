import pytest
import torch

from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.sparsity.projection import (
    anneal_progress,
    check_budget,
    project,
    projected_groups,
)


def test_a_transposed_weight_is_masked_in_place_by_column():
    model = SparseTransformer(ModelConfig(vocab_size=20, d_model=16, d_head=4, n_layer=1))
    recipe = TrainConfig(fraction=0.2, min_alive=3)
    before = model.layers[0].mlp.down.weight.detach().clone()
    project(projected_groups(model, recipe), 1.0)
    down = model.layers[0].mlp.down.weight
    assert int(down.count_nonzero()) == round(0.2 * down.numel())
    assert int((down != 0).sum(0).min()) >= 3
    assert torch.equal(down[down != 0], before[down != 0])


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_every_tensor_but_the_bigram_table_reaches_its_share_exactly(fraction):
    model = SparseTransformer(ModelConfig(vocab_size=40, d_model=32, d_head=8, n_layer=2, attention_sink=True))
    torch.nn.init.normal_(model.bigram)
    for p in model.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p)
    project(projected_groups(model, TrainConfig(fraction=fraction, min_alive=1)), 1.0)
    for name, p in model.named_parameters():
        untouched = name == "bigram" or name.endswith("sink")
        expected = p.numel() if untouched else max(1, round(fraction * p.numel()))
        assert int(p.count_nonzero()) == expected, name


def test_options_leave_biases_dense_and_give_embeddings_their_own_share():
    model = SparseTransformer(ModelConfig(vocab_size=40, d_model=32, d_head=8, n_layer=1))
    recipe = TrainConfig(fraction=0.1, min_alive=0, dense_biases=True, embedding_fraction=0.5)
    groups = {group.name: group.budget(1.0) / group.weight.numel() for group in projected_groups(model, recipe)}
    assert not [name for name in groups if name.endswith("bias")]
    assert groups["embedding"] == groups["unembedding"] == 0.5
    assert groups["layers.0.mlp.up.weight"] == pytest.approx(0.1, abs=1e-3)


def test_anneal_is_linear_from_dense_to_the_target_and_then_stays():
    group = projected_groups(
        SparseTransformer(ModelConfig(vocab_size=40, d_model=32, d_head=8, n_layer=1)), TrainConfig(fraction=0.2)
    )[0]
    shares = [group.budget(anneal_progress(step, 100, 0.5)) / group.weight.numel() for step in (0, 25, 50, 100)]
    assert shares == pytest.approx([1.0, 0.6, 0.2, 0.2], abs=1e-3)
    assert anneal_progress(0, 100, 0.0) == 1.0


def test_the_known_trap_of_small_widths_is_refused_with_the_figures():
    model = ModelConfig(d_model=256)
    with pytest.raises(InputError, match=r"min_alive 4: .* would keep .* fraction 0\.01 allows .* at most 2"):
        check_budget(model, TrainConfig(fraction=0.01, min_alive=4))
    check_budget(model, TrainConfig(fraction=0.01, min_alive=1))


def test_a_minimum_alive_never_refuses_what_stays_dense():
    model = ModelConfig(vocab_size=20, d_model=2, d_head=2, n_layer=1, activation_fraction=1)
    check_budget(model, TrainConfig(fraction=1, min_alive=4))
    with pytest.raises(InputError, match="min_alive 4"):
        check_budget(model, TrainConfig(fraction=0.9, min_alive=4))
