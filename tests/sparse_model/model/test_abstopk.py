import pytest
import torch
from hypothesis import given, settings, strategies as st

from sparse_model.model import abstopk
from sparse_model.model.abstopk import abs_topk


def reference(x: torch.Tensor, k: int) -> torch.Tensor:
    """Everything at least as large as the k-th largest magnitude, by torch.topk."""
    threshold = x.double().abs().topk(k, dim=-1).values[..., -1:]
    return torch.where(x.double().abs() >= threshold, x, torch.zeros_like(x))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    width=st.integers(1, 40),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    levels=st.sampled_from([2, 5, 1000]),  # few levels make many ties and zeros
    data=st.data(),
)
def test_equals_torch_topk_over_shapes_ties_and_zeros(rows, width, seed, dtype, levels, data):
    k = data.draw(st.integers(1, width))
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randint(-levels, levels + 1, (rows, width), generator=generator) / 3).to(dtype)
    assert torch.equal(abs_topk(x, k), reference(x, k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(abstopk, "CPU_ENTRIES", 2 * width)  # two rows at a time, and these are not side by side
        spread = torch.stack([x, x.flip(0)], dim=1)
        assert torch.equal(abs_topk(spread[:, 1], k), reference(x.flip(0), k))


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([512, 513, 514, 515, 770, 1024, 1026]),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    levels=st.sampled_from([2, 50, 100_000]),
    one_sided=st.booleans(),  # all of the large ones in one half of the row
    data=st.data(),
)
def test_wide_rows_equal_torch_topk_too(width, seed, dtype, levels, one_sided, data):
    k = data.draw(st.one_of(st.integers(1, width), st.sampled_from([1, width // 2, width // 2 + 1, width - 1])))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-levels, levels + 1, (2, 3, width), generator=generator) / levels
    if one_sided:
        x[0, :, : width // 2] *= 100
        x[1, :, width // 2 :] *= 100
    assert torch.equal(abs_topk(x.to(dtype), k), reference(x.to(dtype), k))


def test_gradient_flows_through_what_is_kept_and_nothing_else():
    x = torch.tensor([[3.0, -1.0, 0.5, -4.0]], requires_grad=True)
    abs_topk(x, 2).backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert x.grad.tolist() == [[1.0, 0.0, 0.0, 4.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_where_few_are_nonzero_gradient_reaches_those_alone(dtype):
    x = torch.zeros(2, 6, dtype=dtype)
    x[0, 1], x[1, :4] = 2.0, torch.tensor([1.0, -0.0, 3.0, 4.0])
    x.requires_grad_()
    abs_topk(x, 4).backward(torch.ones_like(x))
    assert x.grad.tolist() == [[0, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 0]]


def test_gradient_of_a_transposed_input():
    x = torch.randn(6, 5, 4).transpose(0, 1).requires_grad_()
    weights = torch.randn(4, 5, 6).permute(1, 2, 0)
    (abs_topk(x, 2) * weights).sum().backward()
    assert torch.equal(x.grad, torch.where(abs_topk(x, 2) != 0, weights, torch.zeros(())))


def test_the_input_is_left_as_it_was():
    x = torch.randn(3, 8)
    before = x.clone()
    abs_topk(x, 3)
    assert torch.equal(x, before)


def test_not_a_number_is_not_swallowed():
    assert abs_topk(torch.tensor([1.0, float("nan"), 2.0]), 1).isnan().any()


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_outside_the_axis_is_refused(k):
    with pytest.raises(ValueError, match="allowed: 1 to 4"):
        abs_topk(torch.zeros(2, 4), k)
