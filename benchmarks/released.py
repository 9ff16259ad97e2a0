"""The training step of the authors' released script, operation by operation, for `train_step.py` to time beside ours.

Written anew after openai/circuit_sparsity (circuit_sparsity/train.py and inference/gpt.py), which itself needs a GPU
and data of one's own: AbsTopK by topk, gather and scatter; every sublayer computed once more in the backward pass; all
logits at once; Adam, fused; the gradient's RMS divided out tensor by tensor; the projection by a topk over each whole
tensor and a mask of booleans; decay last. Under autocast, or in float32. Not so are the anneal and the learning
rate's schedule, which take no time, and a loss scaler that does nothing outside of float16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparse_model.model.config import ModelConfig

LR, DECAY, MIN_ALIVE, ACTIVE = 1.28e-2, 0.1, 4, 0.25
NEURONS = {"qkv.weight": 1, "up.weight": 1, "out.weight": 0, "down.weight": 0}
"""Along which axis the weights of one neuron or attention channel lie."""


def keep_largest(x: Tensor) -> Tensor:
    """x (..., C) with all but a quarter of each row zeroed."""
    places = x.abs().topk(int(ACTIVE * x.shape[-1]), dim=-1, sorted=False).indices
    return torch.zeros_like(x).scatter_(-1, places, x.gather(-1, places))


class ReleasedBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, self.d_head = config.d_model, config.d_head
        self.norms = nn.ModuleList(nn.RMSNorm(D) for _ in range(2))
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def attend(self, x: Tensor) -> Tensor:
        parts = self.qkv(keep_largest(self.norms[0](x))).chunk(3, -1)
        q, k, v = (keep_largest(z).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for z in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        return keep_largest(self.out(mixed))

    def think(self, x: Tensor) -> Tensor:
        neurons = keep_largest(F.gelu(self.up(keep_largest(self.norms[1](x)))))
        return keep_largest(self.down(neurons))

    def forward(self, x: Tensor) -> Tensor:
        x = x + checkpoint(self.attend, x, use_reentrant=False)
        return x + checkpoint(self.think, x, use_reentrant=False)


class ReleasedGPT(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        V, D = config.vocab_size, config.d_model
        self.embedding, self.unembedding = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
        self.positions = nn.Parameter(torch.zeros(config.context, D), requires_grad=False)
        self.blocks = nn.Sequential(*(ReleasedBlock(config) for _ in range(config.n_layer)))
        self.norm = nn.RMSNorm(D)
        self.bigram = nn.Parameter(0.02 * torch.rand(V, V))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.embedding(tokens) + self.positions[: tokens.shape[1]])
        return self.unembedding(self.norm(x)) + F.embedding(tokens, self.bigram)


@torch.no_grad()
def project_as_released(name: str, p: Tensor, fraction: float) -> None:
    """Zero a parameter's smallest entries; for a bias the largest are found, and nothing is zeroed."""
    k = int(fraction * p.numel())
    size = p.abs()
    axis = next((axis for end, axis in NEURONS.items() if name.endswith(end)), None)
    if axis is not None:
        size.scatter_(axis, size.topk(MIN_ALIVE, dim=axis, sorted=False).indices, 1e10)
    kept = size.flatten().topk(k, sorted=False).indices
    if p.dim() == 2:
        dropped = torch.ones(p.numel(), dtype=torch.bool, device=p.device).index_fill_(0, kept, False)
        p[dropped.view_as(p)] = 0


def released_step(config: ModelConfig, fraction: float, tokens: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """One step on tokens (B, T + 1), of which the script reads T and predicts all but the first."""
    device = tokens.device.type
    model = ReleasedGPT(config).to(device)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    cut = [(n, p) for n, p in learned.items() if n != "bigram" and (p.dim() > 1 or n.endswith("bias"))]
    decayed = [p for name, p in learned.items() if p.dim() > 1 and name != "bigram"]
    adam = torch.optim.Adam(learned.values(), LR, (0.9, 0.95), 0.1, fused=True)

    def step() -> None:
        adam.zero_grad()
        read = tokens[:, :-1]
        with torch.autocast(device, torch.bfloat16, enabled=dtype is torch.bfloat16):
            logits = model(read)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), read[:, 1:].flatten()).backward()
        with torch.no_grad():
            norm = torch.nn.utils.clip_grad_norm_(learned.values(), 1e10)
            rms = norm / sum(p.numel() for p in learned.values()) ** 0.5
            for p in learned.values():
                p.grad /= rms + 1e-5
        adam.step()
        for name, p in cut:
            project_as_released(name, p, fraction)
        with torch.no_grad():
            for p in decayed:
                p -= DECAY * LR * p

    return step
