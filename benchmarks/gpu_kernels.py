"""Each GPU kernel beside its reference, and its time: a part of `gpu.py`. On a CPU at toy size, beside themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timing import medians_ms

from sparse_model.model.abstopk import abs_topk, gelu_topk, norm_topk
from sparse_model.model.attention import attention_with_sink, side_by_side
from sparse_model.sparsity.selection import keep_mask

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
Figures = dict[str, Any]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b|| in float64; not a number where one of them is."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


def selected(y: torch.Tensor, k: int) -> torch.Tensor:
    magnitude = y.detach().float().abs()
    return torch.where(magnitude >= magnitude.topk(k, dim=-1).values[..., -1:], y, torch.zeros_like(y))


WIDTHS = {torch.bfloat16: (64, 300, 2048, 8192, 16384), torch.float16: (2048,), torch.float32: (300, 2048, 16384)}


def check_topk() -> Any:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for width in WIDTHS[dtype] if GPU else (64, 300):
            for kind in ("topk", "gelu", "norm"):
                x = torch.randn(33, 4, width, device=DEVICE)
                x = (x if kind == "norm" else x.to(dtype)).requires_grad_()
                other, k = x.detach().clone().requires_grad_(), width // 4
                if kind == "topk":
                    ours, theirs, allowed = abs_topk(x, k), selected(other, k), 0.0
                elif kind == "gelu":
                    # the library's GELU in the low type may differ in the last bit, and so in what ties
                    ours, theirs, allowed = gelu_topk(x, k), selected(F.gelu(other), k), 0.01
                else:
                    normed = F.rms_norm(other, (width,)).to(dtype)
                    ours, theirs, allowed = norm_topk(x, k, dtype), selected(normed, k), 0.02
                upstream = torch.randn_like(ours)
                ours.backward(upstream)
                theirs.backward(upstream)
                yield f"{kind} {dtype} {width}", difference(ours.detach(), theirs.detach()), allowed
                yield (
                    f"{kind} {dtype} {width} gradient",
                    difference(x.grad, other.grad),
                    max(allowed, 0.02) * (kind != "topk"),
                )


def check_projection() -> Any:
    for seed, (R, C) in enumerate([(2048, 2048), (8192, 2048), (1, 2048), (300, 77), (5, 40_001)]):
        for fraction in (1 / 1000, 1 / 16, 0.5, 0.97):
            for j, by_column in ((0, False), (4, False), (4, True), (9, True)):
                for levels in (50, 100_000):
                    R, C = (R, C) if GPU else (min(R, 60), min(C, 70))
                    lanes = C if by_column else R
                    j = min(j, R if by_column else C)
                    k = round(fraction * R * C)
                    if k < max(1, j * lanes):
                        continue
                    generator = torch.Generator(DEVICE).manual_seed(seed)
                    weight = torch.randn(R, C, device=DEVICE, generator=generator)
                    weight = weight if levels > 50 else (weight * levels).round() / levels  # very many ties
                    expected = weight * keep_mask(weight, k, j, by_column)
                    ours = weight.clone()
                    projected(ours, k, j, by_column)
                    label = f"{R} x {C}, {k} of {R * C}, {j} alive by {'column' if by_column else 'row'}, {levels}"
                    yield label, float((ours != expected).sum()), 0.0


def projected(weight: torch.Tensor, k: int, j: int, by_column: bool) -> None:
    if GPU:
        from sparse_model.kernels.selection import project_matrices

        project_matrices([(weight, k, j, by_column)])
    else:
        weight.mul_(keep_mask(weight, k, j, by_column))


def check_sink() -> Any:
    for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 0.03)):
        q, k, v = (torch.randn(2, 4, 60, 16, device=DEVICE).to(dtype) for _ in range(3))
        sink = torch.linspace(-2, 5, 4, device=DEVICE)
        scores = (q.double() @ k.double().transpose(-1, -2)) / 4
        scores = scores.masked_fill(torch.ones(60, 60, dtype=torch.bool, device=DEVICE).triu(1), -torch.inf)
        column = sink.double().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        expected = torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v.double()
        yield f"sink {dtype}", difference(attention_with_sink(q, k, v, sink), expected), allowed
        yield from check_attention(dtype, allowed)


def check_attention(dtype: torch.dtype, allowed: float) -> Any:
    """Values and gradients of attention as the model calls it, beside the plain form in float64."""
    for T, H, K, with_sink in ((256, 8, 16, False), (100, 3, 32, True), (65, 2, 64, False), (40, 2, 128, True)):
        qkv = torch.randn(2, T, 3, H * K, device=DEVICE).to(dtype).requires_grad_()
        sink = torch.linspace(-2, 4, H, device=DEVICE).requires_grad_() if with_sink else None
        exact = qkv.detach().double().requires_grad_()
        column = torch.full((H,), -torch.inf, device=DEVICE) if sink is None else sink.detach()
        column = column.double().view(1, -1, 1, 1).repeat(2, 1, T, 1).requires_grad_()
        q, k, v = (z.unflatten(-1, (H, K)).transpose(1, 2) for z in exact.unbind(2))
        future = torch.ones(T, T, dtype=torch.bool, device=DEVICE).triu(1)
        scores = ((q @ k.transpose(-1, -2)) / K**0.5).masked_fill(future, -torch.inf)
        scores = torch.cat([scores, column], -1)
        expected = (scores.softmax(-1)[..., :-1] @ v).transpose(1, 2).flatten(-2)
        ours, upstream = side_by_side(qkv, K, sink), torch.randn(2, T, H * K, device=DEVICE)
        ours.backward(upstream.to(dtype))
        expected.backward(upstream.double())
        label = f"attention {dtype} {T} x {K}{' sink' if with_sink else ''}"
        yield label, difference(ours.detach(), expected.detach()), allowed
        yield f"{label} gradient", difference(qkv.grad, exact.grad), allowed
        if sink is not None:
            terms = column.grad  # of either sign: beside their norm, for their sum may be close to nothing
            error = (sink.grad.double() - terms.sum((0, 2, 3))).norm() / terms.norm()
            yield f"{label} gradient of the sink", float(error), allowed


KERNEL_CHECKS = {"abstopk": check_topk, "projection": check_projection, "sink": check_sink}


def kernel_times() -> Figures:
    """Microseconds, and the share of the copying speed, for the shapes of a model 2048 wide."""
    rows, found = (16_384, {}) if GPU else (64, {})
    for width in (2048, 8192) if GPU else (128,):
        x = torch.randn(rows, width, device=DEVICE).bfloat16().requires_grad_()
        wide = torch.randn(rows, width, device=DEVICE, requires_grad=True)
        k, upstream = width // 4, torch.randn(rows, width, device=DEVICE).bfloat16()
        things: dict[str, tuple[Callable[[], torch.Tensor], int]] = {
            "topk": (lambda x=x, k=k: abs_topk(x, k), 4),
            "gelu_topk": (lambda x=x, k=k: gelu_topk(x, k), 4),
            "norm_topk": (lambda x=wide, k=k: norm_topk(x, k, torch.bfloat16), 6),
            "library_topk": (lambda x=x, k=k: selected(x, k), 4),
        }
        for name, (forward, bytes_each) in things.items():
            y = forward()
            taken = medians_ms({"f": forward, "b": lambda y=y, up=upstream: y.backward(up, retain_graph=True)}, 10)
            found[f"{name}_{width}_forward_us"] = 1e3 * taken["f"]
            found[f"{name}_{width}_backward_us"] = 1e3 * taken["b"]
            found[f"{name}_{width}_forward_gb_per_second"] = bytes_each * rows * width / taken["f"] / 1e6
    return found
