"""The pieces written for speed, each beside what a library does in its place: `python benchmarks/kernels.py`.

All on CPU; the shapes are those of a 128-wide quickstart model (16 sequences of 128 tokens) unless named otherwise.
With `--compile` it compiles the GPU's kernels instead, on any machine, and prints what they take of a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import medians_ms
from torch import Tensor
from torch.autograd import grad

from sparse_model.model.abstopk import abs_topk
from sparse_model.model.attention import causal_attention
from sparse_model.model.loss import next_token_loss, unembedding_loss
from sparse_model.sparsity.cpu_projection import survivors
from sparse_model.sparsity.selection import Matrix

Pair = tuple[Callable[[], object], Callable[[], object]]


def library_topk(x: Tensor, k: int) -> Tensor:
    kept = x.abs().topk(k, dim=-1).indices
    return torch.zeros_like(x).scatter(-1, kept, x.gather(-1, kept))


def abstopk(rows: int = 2048, width: int = 512) -> Pair:
    x = torch.randn(rows, width).bfloat16().requires_grad_()
    upstream = torch.randn_like(x)
    return lambda: grad(abs_topk(x, width // 4), x, upstream), lambda: grad(library_topk(x, width // 4), x, upstream)


def projection(numel: int = 4_194_304) -> Pair:
    weight, k = torch.randn(2048, numel // 2048), numel // 16
    matrix = Matrix(weight, k)

    def library() -> Tensor:
        keep = torch.zeros(numel, dtype=torch.bool)
        keep[weight.abs().flatten().topk(k).indices] = True
        return keep

    return lambda: survivors(matrix), library


def attention(batch: int = 16, heads: int = 8, context: int = 128, d_head: int = 16) -> Pair:
    q, k, v = (torch.randn(batch, heads, context, d_head).bfloat16().requires_grad_() for _ in range(3))
    upstream = torch.randn_like(q)

    def library() -> None:
        # the fastest way to call it: its bfloat16 backward pass is slower still
        wide = (z.float() for z in (q, k, v))
        grad(F.scaled_dot_product_attention(*wide, is_causal=True).bfloat16(), (q, k, v), upstream)

    return lambda: grad(causal_attention(q, k, v), (q, k, v), upstream), library


def loss(positions: int = 2048, width: int = 128, vocabulary: int = 2048) -> Pair:
    final = torch.randn(positions, width).bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, width).requires_grad_()
    bias, bigram = torch.zeros(vocabulary, requires_grad=True), torch.zeros(vocabulary, vocabulary, requires_grad=True)
    weights = final, weight, bias, bigram
    tokens, targets = (torch.randint(0, vocabulary, (positions,)) for _ in range(2))

    def library() -> None:
        logits = F.linear(final, weight.to(final.dtype), bias.to(final.dtype)).float() + F.embedding(tokens, bigram)
        grad(next_token_loss(logits, targets), weights)

    return lambda: grad(unembedding_loss(*weights, tokens, targets), weights), library


BENCHMARKS: dict[str, Callable[[], Pair]] = {
    "abstopk": abstopk,
    "abstopk_1024": lambda: abstopk(width=1024),
    "projection_4M": projection,
    "attention": attention,
    "loss": loss,
}


def compile_kernels(part: str) -> None:
    """A row for each variant of each kernel: registers and spilled bytes per thread, shared bytes per block."""
    from sparse_model.kernels.ahead import CAPABILITIES, all_variants, compile_ahead

    for capability in CAPABILITIES:
        print(f"{'sm_' + str(capability):44}{'registers':>10}{'spilled':>9}{'shared':>9}")
        for variant in all_variants():
            if part in variant.name:
                taken = compile_ahead(variant, capability)
                print(f"{variant.name:44}{taken.registers:10}{taken.spilled:9}{taken.shared:9}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each, taken in turn (default: 15)")
    parser.add_argument("--json", type=Path, help="write the figures into this file as well")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="",
        metavar="NAME",
        help="compile the GPU's kernels whose names contain NAME (all by default) for sm_80 and sm_90",
    )
    options = parser.parse_args()
    if options.compile is not None:
        compile_kernels(options.compile)
        return
    figures = {}
    print(f"{torch.get_num_threads()} threads, medians of {options.rounds} in ms")
    print(f"{'':14}{'ours':>9}{'library':>9}{'ratio':>8}")
    for name, build in BENCHMARKS.items():
        ours, library = build()
        figures[name] = taken = medians_ms({"ours": ours, "library": library}, options.rounds)
        taken["ratio"] = taken["ours"] / taken["library"]
        print(f"{name:14}{taken['ours']:9.2f}{taken['library']:9.2f}{taken['ratio']:8.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
