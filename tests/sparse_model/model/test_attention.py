import pytest
import torch
import torch.nn.functional as F

from sparse_model.model.attention import QUERY_BLOCK, attention_with_sink, causal_attention


@pytest.mark.parametrize("length", [1, 5, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 7])
def test_values_and_gradients_equal_the_librarys_in_float32(length):
    generator = torch.Generator().manual_seed(length)
    q, k, v, upstream = (torch.randn(2, 3, length, 8, generator=generator).bfloat16() for _ in range(4))
    low = [z.clone().requires_grad_() for z in (q, k, v)]
    exact = [z.float().requires_grad_() for z in (q, k, v)]
    ours = causal_attention(*low)
    theirs = F.scaled_dot_product_attention(*exact, is_causal=True)
    ours.backward(upstream)
    theirs.backward(upstream.float())
    pairs = [(ours, theirs), *((a.grad, b.grad) for a, b in zip(low, exact, strict=True))]
    for a, b in pairs:
        assert (a.float() - b).abs().max() <= 0.02 * b.abs().max().clamp_min(1e-3)


def test_no_query_sees_a_later_key():
    q, k, v = (torch.randn(1, 1, 2 * QUERY_BLOCK, 4).bfloat16() for _ in range(3))
    before = causal_attention(q, k, v)
    k[:, :, QUERY_BLOCK + 3 :] = 100.0
    v[:, :, QUERY_BLOCK + 3 :] = 100.0
    after = causal_attention(q, k, v)
    assert torch.equal(before[:, :, : QUERY_BLOCK + 3], after[:, :, : QUERY_BLOCK + 3])
    assert not torch.equal(before, after)


def plain_with_sink(q, k, v, sink):
    """The sink as one more column of the scores, which is dropped after the softmax."""
    T = q.shape[-2]
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
    column = sink.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1] @ v


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)])
@pytest.mark.parametrize("length", [1, 7, QUERY_BLOCK + 3])
def test_a_sink_is_one_more_column_of_the_softmax(length, dtype, tolerance):
    generator = torch.Generator().manual_seed(length)
    q, k, v, upstream = (torch.randn(2, 3, length, 8, generator=generator).to(dtype) for _ in range(4))
    sink = torch.tensor([-3.0, 0.513, 4.7])
    low = [z.clone().requires_grad_() for z in (q, k, v, sink)]
    exact = [z.double().requires_grad_() for z in (q, k, v, sink)]
    ours, theirs = attention_with_sink(*low), plain_with_sink(*exact)
    ours.backward(upstream)
    theirs.backward(upstream.double())
    for a, b in [(ours, theirs), *((a.grad, b.grad) for a, b in zip(low, exact, strict=True))]:
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-3)
