"""Compares the Triton kernels with plain torch over shapes, types, ties, zeros and NaN (TRITON_INTERPRET=1)."""

from itertools import product

import torch
import torch.nn.functional as F

from sparse_model.kernels import selection
from sparse_model.kernels.topk import triton_norm_topk, triton_topk
from sparse_model.sparsity.projection import keep_mask


def kept(y: torch.Tensor, k: int) -> torch.Tensor:
    magnitude = y.detach().float().abs()
    threshold = magnitude.topk(k, dim=-1).values[..., -1:]
    return torch.where(magnitude >= threshold, y, torch.zeros_like(y))


def check(shape: tuple[int, ...], k: int, dtype: torch.dtype, levels: int, before: str) -> None:
    values = torch.randint(-levels, levels + 1, shape) * (3 / levels)
    values[..., 0] *= 1e4  # far above the others: the search must begin anew at zero
    wide = values.float() if before == "norm" else values.to(dtype)
    ours, theirs = (wide.clone().requires_grad_() for _ in range(2))
    upstream = torch.randn(shape).to(dtype)
    if before == "norm":
        got = triton_norm_topk(ours, k, dtype, 1e-6)
        expected = kept(F.rms_norm(theirs, (shape[-1],), eps=1e-6).to(dtype), k)
    else:
        got = triton_topk(ours, k, before == "gelu")
        expected = kept(F.gelu(theirs.float()).to(dtype) if before == "gelu" else theirs, k)
    got.backward(upstream)
    expected.backward(upstream)
    tolerance = {"rtol": 0.0, "atol": 0.0} if before == "none" else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(got, expected, **tolerance)
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)


def check_parts() -> None:
    """Rows of a part of a wider tensor, and a gradient that comes transposed."""
    whole = torch.randn(2, 5, 3 * 16)
    for part in whole.chunk(3, dim=-1):
        ours, theirs = (part.detach().requires_grad_() for _ in range(2))
        upstream = torch.randn(5, 2, 16).transpose(0, 1)
        assert torch.equal(triton_topk(ours, 4), kept(theirs, 4))
        triton_topk(ours, 4).backward(upstream)
        kept(theirs, 4).backward(upstream)
        assert torch.equal(ours.grad, theirs.grad)


def check_projection(seed: int) -> None:
    """Several matrices at once, each by sample, by all of its entries, or by the search through the whole of it."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    matrices, expected = [], []
    for _ in range(4):
        R, C, levels = drawn(1, 20), drawn(1, 70), (1, 3, 100_000)[drawn(0, 2)]
        weight = torch.randint(-levels, levels + 1, (R, C), generator=generator) / levels
        weight *= torch.rand(R, 1, generator=generator) if drawn(0, 1) else 1
        if not drawn(0, 4):
            weight[drawn(0, R - 1), drawn(0, C - 1)] = float("nan")
        by_column = bool(drawn(0, 1))
        lanes, length = (C, R) if by_column else (R, C)
        j = min(drawn(0, 6), length)
        k = drawn(max(1, j * lanes), R * C)
        keep = keep_mask(weight, k, j, by_column)
        expected.append(torch.where(keep, weight, torch.zeros(())))
        matrices.append((weight, k, j, by_column))
    selection.project_matrices(matrices)
    for (weight, *_), theirs in zip(matrices, expected, strict=True):
        torch.testing.assert_close(weight, theirs, rtol=0, atol=0, equal_nan=True)


torch.manual_seed(0)
cases = list(
    product(
        [((3, 16), 4), ((2, 2, 37), 9), ((1, 1), 1), ((2, 64), 64)],
        [torch.bfloat16, torch.float32],
        [2, 10_000],  # few levels make many ties and zeros
        ["none", "gelu", "norm"],
    )
)
for (shape, k), dtype, levels, before in cases:
    check(shape, k, dtype, levels, before)
assert triton_topk(torch.tensor([[1.0, float("nan"), 2.0]]), 1).isnan().any()
check_parts()
sizes = [
    {"SMALL": 2**15},
    {"SMALL": 64, "SAMPLED": 64, "SHARE": 2},
    {"SMALL": 64, "SAMPLED": 16, "SHARE": 16, "DEVIATIONS": 0},
]
for seed in range(60):
    for name, value in sizes[seed % 3].items():
        setattr(selection, name, value)
    selection.TALL, selection.WIDE, selection.SCANNED = 4, 16, 32
    selection._plan.cache_clear()
    check_projection(seed)
print(f"{len(cases) + 60} cases agree")
