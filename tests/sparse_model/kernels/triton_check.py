"""Compares the Triton kernels with plain torch over shapes, types, ties, zeros and NaN (TRITON_INTERPRET=1)."""

from itertools import product

import torch
import torch.nn.functional as F

from sparse_model.kernels import selection
from sparse_model.kernels.attention import triton_attention
from sparse_model.kernels.check import run_one
from sparse_model.kernels.topk import triton_add_topk, triton_norm_topk, triton_topk
from sparse_model.sparsity.selection import keep_mask


def kept(y: torch.Tensor, k: int) -> torch.Tensor:
    magnitude = y.detach().float().abs()
    threshold = magnitude.topk(k, dim=-1).values[..., -1:]
    return torch.where((magnitude >= threshold) & (magnitude > 0), y, torch.zeros_like(y))


def check(shape: tuple[int, ...], k: int, dtype: torch.dtype, levels: int, before: str) -> None:
    values = torch.randint(-levels, levels + 1, shape) * (3 / levels)
    values[..., 0] *= 1e4  # far above the others: the search must begin anew at zero
    wide = values.float() if before == "norm" else values.to(dtype)
    ours, theirs = (wide.clone().requires_grad_() for _ in range(2))
    upstream = torch.randn(shape).to(dtype)
    if before == "add":
        stream, other = (torch.linspace(-1, 1, values.numel()).view(shape).requires_grad_() for _ in range(2))
        got, expected = triton_add_topk(stream, ours, k), other + kept(theirs, k)
        upstream = upstream.float()
    elif before == "norm":
        got = triton_norm_topk(ours, k, dtype, 1e-6)
        expected = kept(F.rms_norm(theirs, (shape[-1],), eps=1e-6).to(dtype), k)
    else:
        got = triton_topk(ours, k, before == "gelu")
        expected = kept(F.gelu(theirs.float()).to(dtype) if before == "gelu" else theirs, k)
    got.backward(upstream)
    expected.backward(upstream)
    if before == "add":
        assert torch.equal(stream.grad, other.grad)
    tolerance = {"rtol": 0.0, "atol": 0.0} if before in ("none", "add") else {"rtol": 2e-2, "atol": 2e-2}
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


def check_attention(B: int, T: int, H: int, K: int, with_sink: bool) -> None:
    """Values and gradients beside the plain form in float64."""
    qkv = torch.randn(B, T, 3, H, K).half().requires_grad_()
    sink = torch.linspace(-2, 4, H).requires_grad_() if with_sink else None
    exact = qkv.detach().double().requires_grad_()
    column = torch.full((H,), -torch.inf).double() if sink is None else sink.detach().double().requires_grad_()
    q, k, v = (z.transpose(1, 2) for z in exact.unbind(2))
    scores = (q @ k.transpose(-1, -2)) / K**0.5
    scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
    scores = torch.cat([scores, column.view(1, -1, 1, 1).expand(B, H, T, 1)], -1)
    expected = (scores.softmax(-1)[..., :-1] @ v).transpose(1, 2)
    upstream = torch.randn(B, T, H, K).half()
    got = triton_attention(qkv, sink)
    got.backward(upstream)
    expected.backward(upstream.double())
    pairs = [(got, expected), (qkv.grad, exact.grad)] + ([] if sink is None else [(sink.grad, column.grad)])
    for a, b in pairs:
        assert (a.double() - b).abs().max() <= 0.01 * b.abs().max(), (B, T, H, K, with_sink)


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
        ["none", "gelu", "norm", "add"],
    )
)
for (shape, k), dtype, levels, before in cases:
    check(shape, k, dtype, levels, before)
assert triton_topk(torch.tensor([[1.0, float("nan"), 2.0]]), 1).isnan().any()
check_parts()
run_one("cpu")
for attention in [(2, 1, 3, 8, True), (1, 130, 2, 8, True), (1, 130, 2, 16, False)]:
    check_attention(*attention)
for attention in product([2], [65], [3], [8, 16], [False, True]):
    check_attention(*attention)
SEEDS = 9
sizes = [
    {"SMALL": 2**15},
    {"SMALL": 64, "SAMPLED": 64, "SHARE": 2},
    {"SMALL": 64, "SAMPLED": 16, "SHARE": 16, "DEVIATIONS": 0},
]
for seed in range(SEEDS):
    for name, value in sizes[seed % 3].items():
        setattr(selection, name, value)
    selection.TALL, selection.WIDE, selection.SCANNED = 8, 32, 512
    selection._plan.cache_clear()
    check_projection(seed)
print(f"{len(cases) + SEEDS} cases agree")
