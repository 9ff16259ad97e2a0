import pytest
import torch
import torch.nn.functional as F

from sparse_model.model.attention import BLOCK, causal_attention


@pytest.mark.parametrize("length", [1, 5, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
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
    q, k, v = (torch.randn(1, 1, 2 * BLOCK, 4).bfloat16() for _ in range(3))
    before = causal_attention(q, k, v)
    k[:, :, BLOCK + 3 :] = 100.0
    v[:, :, BLOCK + 3 :] = 100.0
    after = causal_attention(q, k, v)
    assert torch.equal(before[:, :, : BLOCK + 3], after[:, :, : BLOCK + 3])
    assert not torch.equal(before, after)
