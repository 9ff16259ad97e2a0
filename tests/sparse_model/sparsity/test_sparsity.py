import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.sparsity.cpu_projection import SAMPLED, SMALL, Matrix, project_matrices
from sparse_model.sparsity.projection import (
    Group,
    anneal_progress,
    check_budget,
    keep_mask,
    project,
    project_by_selection,
    projected_groups,
)


def reference(weight: torch.Tensor, k: int, min_alive: int) -> set[tuple[int, int]]:
    """Each row's best first, then the best of the rest, by sorting plain Python lists."""
    entries = [(-abs(float(w)), r, c) for r, row in enumerate(weight) for c, w in enumerate(row)]
    forced = {e for r in range(len(weight)) for e in sorted(e for e in entries if e[1] == r)[:min_alive]}
    rest = sorted(e for e in entries if e not in forced)
    return {(r, c) for _, r, c in [*forced, *rest[: k - len(forced)]]}


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 9),
    levels=st.sampled_from([1, 3, 10_000]),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_mask_equals_the_sorting_reference_over_shapes_ties_and_minima(rows, columns, levels, seed, data):
    min_alive = data.draw(st.integers(0, columns))
    k = data.draw(st.integers(max(1, min_alive * rows), rows * columns))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-levels, levels + 1, (rows, columns), generator=generator).float()
    keep = keep_mask(weight, k, min_alive)
    assert int(keep.sum()) == k
    assert keep.sum(1).min() >= min_alive
    expected = reference(weight, k, min_alive)
    if levels == 10_000:  # without ties the set itself is determined
        assert {tuple(i) for i in keep.nonzero().tolist()} == expected
    kept = sorted(weight[keep].abs().tolist())
    assert kept == sorted(abs(float(weight[i])) for i in expected)


def test_one_displaced_row_after_another_is_still_kept_alive():
    weight = torch.tensor([[9.0, 8.0, 7.0], [6.0, 0.1, 0.1], [5.0, 0.2, 0.1], [0.3, 0.1, 0.1]])
    keep = keep_mask(weight, 4, 1)
    assert keep.nonzero().tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    levels=st.sampled_from([1, 3, 10_000]),
    uneven=st.booleans(),
    by_column=st.booleans(),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_both_projections_leave_what_the_mask_keeps_ties_included(
    shape, levels, uneven, by_column, threads, seed, data
):
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for _ in range(3):
        weight = torch.randint(-levels, levels + 1, shape, generator=generator).float()
        if uneven:  # few lanes have most of the large weights, so that others need their minimum
            scales = (torch.rand(size, generator=generator).pow(3) for size in shape)
            weight *= torch.outer(*scales) if levels == 10_000 else torch.outer(*(s.mul(2).round() for s in scales))
        weights.append(weight)
    lanes = shape[1 if by_column else 0]
    min_alive = data.draw(st.integers(0, shape[0 if by_column else 1]))
    k = data.draw(st.integers(max(1, min_alive * lanes), shape[0] * shape[1]))
    expected = [weight * keep_mask(weight, k, min_alive, by_column) for weight in weights]
    groups = [Group("", weight.clone(), 0.0, min_alive, by_column) for weight in weights]
    project_by_selection([(group, k) for group in groups])
    assert all(torch.equal(group.weight, weight) for group, weight in zip(groups, expected, strict=True))
    project_matrices([Matrix(w.view(torch.int32).numpy(), k, min_alive, by_column) for w in weights], threads)
    assert all(torch.equal(*pair) for pair in zip(weights, expected, strict=True))


def _misleading(weight: torch.Tensor, factor: float) -> torch.Tensor:
    """The entries that the search for the threshold samples are unlike the others."""
    weight.view(-1)[::SAMPLED] *= factor
    return weight


@pytest.mark.parametrize("fraction", [0.0002, 0.01, 0.3, 0.9, 0.9998])
@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight,
        lambda weight: weight.mul(3).round(),  # a few values, many zeros
        lambda weight: weight * (torch.rand_like(weight) < 0.2),
        lambda weight: weight * torch.randn(weight.shape[0], 1).exp() * torch.randn(weight.shape[1]).exp(),
        lambda weight: _misleading(weight, 1e3),
        lambda weight: _misleading(weight, 1e-3),
        lambda weight: torch.where(weight > 2, math.nan, weight),
        torch.zeros_like,
        torch.ones_like,
    ],
    ids=["normal", "ties", "zeros", "uneven", "sample too large", "sample too small", "nan", "all zero", "all one"],
)
def test_large_matrices_are_projected_as_small_ones(change, fraction):
    torch.manual_seed(0)
    weight = change(torch.randn(120, 128))
    assert weight.numel() > SMALL
    for min_alive, by_column in ((0, False), (3, False), (3, True)):
        k = max(round(fraction * weight.numel()), min_alive * 128)
        expected = torch.where(keep_mask(weight, k, min_alive, by_column), weight, 0)
        ours = weight.clone()
        project_matrices([Matrix(ours.view(torch.int32).numpy(), k, min_alive, by_column)], 1)
        assert torch.equal(ours.nan_to_num(9), expected.nan_to_num(9))


def test_not_a_number_stays_and_is_not_hidden():
    weight = torch.tensor([[1.0, float("nan"), 3.0, 2.0]])
    project_matrices([Matrix(weight.view(torch.int32).numpy(), 2, 0, False)], 1)
    assert weight.isnan().tolist() == [[False, True, False, False]]
    assert weight[0, [0, 2, 3]].tolist() == [0, 3, 0]


def test_the_smallest_that_stays_may_itself_not_be_a_number():
    weight = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0])
    weight.view(torch.int32)[2:] = 0x7FC00000 + torch.arange(3)  # three of different bits
    project_matrices([Matrix(weight.view(torch.int32).numpy()[None], 2, 0, False)], 1)
    assert weight.isnan().tolist() == [False, False, False, True, True]
    assert weight[:3].tolist() == [0, 0, 0]


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


def test_a_minimum_by_column_is_that_of_the_transposed_rows():
    weight = torch.randn(12, 9)
    by_column = keep_mask(weight, 30, 3, by_column=True)
    assert torch.equal(by_column, keep_mask(weight.T.contiguous(), 30, 3).T)
    assert int(by_column.sum(0).min()) >= 3


def test_mostly_zero_weights_keep_every_nonzero_one():
    weight = torch.zeros(50, 40)
    weight[::7, ::5] = torch.randn(8, 8)
    assert torch.equal(keep_mask(weight, 100)[weight != 0], torch.ones(64, dtype=torch.bool))
    assert int(keep_mask(weight, 100).sum()) == 100
