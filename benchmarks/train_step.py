"""Time of a training step, ours beside a plain dense GPT's, taking turns: `python benchmarks/train_step.py`.

(a) `plain_dense_bfloat16` and `_float32`: a GPT as people write it (nn.Linear, scaled_dot_product_attention,
cross_entropy, fused AdamW), under bfloat16 autocast and without; (b) `dense`: ours with nothing sparse; (c) `sparse`:
ours at --fraction with AbsTopK at 1/4; (d) `released`: the step of the authors' script (see released.py), in the same
type. Ours are in --dtype, by default the one that training takes on this machine. `sparse_over_plain_dense` is
against the faster of (a).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from released import released_step
from timing import CLOCKS, medians_ms, processor
from torch import Tensor, nn

from sparse_model.cores import keep_freed_memory
from sparse_model.model.abstopk import abs_topk
from sparse_model.model.attention import causal_attention
from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.sparsity.projection import Group, project, projected_groups
from sparse_model.training.measures import flops_per_token
from sparse_model.training.optimizer import SparseOptimizer
from sparse_model.training.precision import resolved

SHAPES = {
    "tiny": {"d_model": 128, "n_layer": 3, "context": 128, "batch": 16},
    "small": {"d_model": 256, "n_layer": 4, "context": 256, "batch": 8},
    "medium": {"d_model": 1024, "n_layer": 8, "context": 256, "batch": 32},
    "paper": {"d_model": 2048, "n_layer": 8, "context": 256, "batch": 64},
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
D_HEAD = 16
PARTS = ("projection_ms", "projection_min_alive_ms", "abstopk_ms", "attention_ms", "adamw_ms")
PEAK_FLOPS = 989e12
"""bfloat16, dense, of one H100 or H200 (data sheet)."""


class PlainBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (z.unflatten(-1, (-1, D_HEAD)).transpose(1, 2) for z in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class PlainGPT(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.Sequential(*(PlainBlock(config.d_model) for _ in range(config.n_layer)))
        self.norm, self.unembedding = nn.RMSNorm(config.d_model), nn.Linear(config.d_model, config.vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.unembedding(self.norm(self.blocks(self.embedding(tokens))))


def plain_step(config: ModelConfig, tokens: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    model = PlainGPT(config).to(DEVICE)
    adamw = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        adamw.step()
        adamw.zero_grad()

    return step


def our_step(config: ModelConfig, recipe: TrainConfig, tokens: Tensor) -> tuple[Callable[[], None], SparseOptimizer]:
    model = SparseTransformer(config, getattr(torch, recipe.dtype)).to(DEVICE)
    model.bigram_by_rows = True  # as training has it on a CPU
    optimizer = SparseOptimizer(model, recipe, n_steps=1000)

    def step() -> None:
        model(tokens[:, :-1], targets=tokens[:, 1:]).backward()
        optimizer.step(0)

    return step, optimizer


def restoring(groups: list[Group], uneven: float = 0.0) -> Callable[[], None]:
    """Makes the weights dense again: a projection of what is zero already is another, easier problem.

    With `uneven`, rows and columns differ in size by factors of about e to that power, as those of trained models do:
    many would be left with less than the minimum alive.
    """
    dense = []
    for group in groups:
        weight = torch.randn_like(group.weight)
        for axis in range(weight.dim()):
            shape = [-1 if i == axis else 1 for i in range(weight.dim())]
            weight *= (uneven * torch.randn(weight.shape[axis], device=DEVICE)).exp().view(shape)
        dense.append(weight)

    @torch.no_grad()
    def restore() -> None:
        for group, weight in zip(groups, dense, strict=True):
            group.weight.copy_(weight)

    return restore


def abstopk_step(config: ModelConfig, tokens: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Every AbsTopK of one step, forward and backward, and nothing else."""
    positions, D = tokens.shape[0] * config.context, config.d_model
    widths = [w for w in (D, D, D, D, D, D, config.d_mlp_, D) for _ in range(config.n_layer)]
    inputs = [torch.randn(positions, w, device=DEVICE).to(dtype).requires_grad_() for w in widths]
    upstream = [torch.randn_like(x) for x in inputs]

    def step() -> None:
        for x, grad in zip(inputs, upstream, strict=True):
            torch.autograd.grad(abs_topk(x, x.shape[-1] // 4), x, grad)

    return step


def attention_step(config: ModelConfig, tokens: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Every attention of one step, forward and backward, and nothing else."""
    size = (tokens.shape[0], config.n_head_, config.context, config.d_head)
    q, k, v, upstream = (torch.randn(size, device=DEVICE).to(dtype) for _ in range(4))
    inputs = [z.requires_grad_() for z in (q, k, v)]

    def step() -> None:
        for _ in range(config.n_layer):
            torch.autograd.grad(causal_attention(*inputs), inputs, upstream)

    return step


def adamw_step(optimizer: SparseOptimizer) -> Callable[[], None]:
    """AdamW on all parameters, without scaling of gradients and projection."""
    parameters = [p for group in optimizer.adamw.param_groups for p in group["params"]]
    gradients = [torch.randn_like(p) for p in parameters]

    def step() -> None:
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optimizer.adamw.step()

    return step


def measure(shape: str, fraction: float, rounds: int, dtype: str, clock: str) -> dict[str, float]:
    """The figures of one shape, in ms, and the ratio that matters."""
    compute = getattr(torch, dtype)
    sizes = dict(SHAPES[shape])
    batch = sizes.pop("batch")
    sparse = ModelConfig(**sizes, d_head=D_HEAD)
    dense = ModelConfig(**sizes, d_head=D_HEAD, activation_fraction=1)
    recipe = TrainConfig(fraction=fraction, min_alive=1, anneal=0, dtype=dtype)
    tokens = torch.randint(0, sparse.vocab_size, (batch, sparse.context + 1), device=DEVICE)
    # the parts have models of their own: the step's stays as training leaves it
    optimizer = our_step(sparse, recipe, tokens)[1]
    restore = restoring(optimizer.groups)
    alive = projected_groups(SparseTransformer(sparse).to(DEVICE), recipe.model_copy(update={"min_alive": 4}))
    restore_uneven = restoring(alive, uneven=0.5)
    taken = medians_ms(
        {
            "plain_dense_bfloat16_ms": plain_step(dense, tokens, torch.bfloat16),
            "plain_dense_float32_ms": plain_step(dense, tokens, torch.float32),
            "dense_ms": our_step(dense, TrainConfig(dtype=dtype), tokens)[0],
            "sparse_ms": our_step(sparse, recipe, tokens)[0],
            "released_ms": released_step(sparse, fraction, tokens, compute),
            "restore_ms": restore,
            "projection_ms": lambda: (restore(), project(optimizer.groups, 1.0)),
            "projection_min_alive_ms": lambda: (restore_uneven(), project(alive, 1.0)),
            "abstopk_ms": abstopk_step(sparse, tokens, compute),
            "attention_ms": attention_step(sparse, tokens, compute),
            "adamw_ms": adamw_step(optimizer),
        },
        rounds,
        clock=clock,
    )
    taken["projection_ms"] -= taken["restore_ms"]
    taken["projection_min_alive_ms"] -= taken.pop("restore_ms")
    fastest_plain = min(taken["plain_dense_bfloat16_ms"], taken["plain_dense_float32_ms"])
    taken["sparse_over_plain_dense"] = taken["sparse_ms"] / fastest_plain
    taken["sparse_over_released"] = taken["sparse_ms"] / taken["released_ms"]
    if DEVICE == "cuda":
        flops = flops_per_token(sparse) * batch * sparse.context
        taken["model_flops_utilisation"] = flops / (taken["sparse_ms"] / 1e3) / PEAK_FLOPS
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="model and batch (default: small)")
    parser.add_argument("--fraction", type=float, default=1 / 16, help="share of weights kept (default: 1/16)")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each, taken in turn (default: 10)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of ours")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall, or cpu: seconds of cores")
    parser.add_argument("--json", type=Path, help="write the figures into this file as well")
    parser.add_argument("--give-back", action="store_true", help="leave the C library as it is, unlike training")
    options = parser.parse_args()
    if not options.give_back:
        keep_freed_memory()  # the plain steps gain by it too
    dtype = resolved(TrainConfig(dtype=options.dtype), torch.device(DEVICE)).dtype
    figures = measure(options.shape, options.fraction, options.rounds, dtype, options.clock)
    print(f"{options.shape}: {SHAPES[options.shape]}, ours in {dtype}, medians")
    print(f"{processor()}, {torch.get_num_threads()} threads, {options.clock} clock")
    for name, value in figures.items():
        share = f"{value / figures['sparse_ms']:8.0%} of sparse_ms" if name in PARTS else ""
        print(f"{name:>24} {value:9.2f}{share}")
    if options.json:
        about = {"processor": processor(), "threads": torch.get_num_threads(), "dtype": dtype}
        options.json.write_text(json.dumps(figures | about, indent=1))


if __name__ == "__main__":
    main()
