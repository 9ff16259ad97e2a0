"""Compares the Triton kernels with plain torch over shapes, dtypes, ties, zeros and NaN (TRITON_INTERPRET=1)."""

from itertools import product

import torch
import torch.nn.functional as F

from sparse_model.model.triton_topk import triton_topk


def reference(x: torch.Tensor, k: int, gelu: bool) -> torch.Tensor:
    y = F.gelu(x.float()).to(x.dtype) if gelu else x
    magnitude = y.detach().float().abs()
    threshold = magnitude.topk(k, dim=-1).values[..., -1:]
    return torch.where(magnitude >= threshold, y, torch.zeros_like(y))


def check(shape: tuple[int, ...], k: int, dtype: torch.dtype, levels: int, gelu: bool) -> None:
    values = torch.randint(-levels, levels + 1, shape) * (3 / levels)
    ours, theirs = (values.to(dtype).requires_grad_() for _ in range(2))
    upstream = torch.randn(shape).to(dtype)
    got, expected = triton_topk(ours, k, gelu), reference(theirs, k, gelu)
    got.backward(upstream)
    expected.backward(upstream)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if gelu else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(got, expected, **tolerance)
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)


torch.manual_seed(0)
cases = list(
    product(
        [((3, 16), 4), ((2, 2, 37), 9), ((1, 1), 1), ((2, 64), 64)],
        [torch.bfloat16, torch.float32],
        [2, 10_000],  # few levels make many ties and zeros
        [False, True],
    )
)
for (shape, k), dtype, levels, gelu in cases:
    check(shape, k, dtype, levels, gelu)
assert triton_topk(torch.tensor([[1.0, float("nan"), 2.0]]), 1).isnan().any()
print(f"{len(cases)} cases agree")
