"""What training takes of a device's memory, by formula; and how many sequences so fit into one forward pass.

The estimate counts what the backward pass needs of the forward pass: per token and layer the residual stream before
both norms in float32, and in the type of activations everything that a product, AbsTopK or GELU reads or gives. So
8 layers of width 2048 take 0.75 MB a token in bfloat16.
"""

from __future__ import annotations

import torch

from sparse_model.distributed.workers import Parallel, world_size
from sparse_model.model.config import ModelConfig, TrainConfig

BYTES_PER_PARAMETER = 20
"""Float32 weights, gradients, two moments, and a working copy."""

FILLED = 0.9
"""Share of a device's memory that may be used: allocators leave gaps."""


def activation_bytes(config: ModelConfig, width: int) -> int:
    """Bytes of a sequence of the model's context that are kept for the backward pass; `width` bytes an activation."""
    D, A, F = config.d_model, config.d_attn, config.d_mlp_
    read = config.width("attn.in") + config.width("mlp.in")
    layer = 4 * 2 * D + width * (read + 6 * A + A + D + 2 * F + D)
    ends = 4 * D + width * (D + config.vocab_size)
    return config.context * (config.n_layer * layer + ends)


def state_bytes(parameters: int, parallel: Parallel, workers: int) -> int:
    """Bytes of weights, gradients and moments that one worker holds."""
    return BYTES_PER_PARAMETER * parameters // (workers if parallel == "fsdp" else 1)


def rows_at_once(
    config: ModelConfig, recipe: TrainConfig, parameters: int, parallel: Parallel, device: torch.device
) -> int:
    """Sequences per forward pass of this worker: as the recipe says, or as many as a GPU's memory should hold."""
    rows = recipe.batch_size // world_size()
    if recipe.micro_batch is not None:
        return min(rows, recipe.micro_batch)
    if device.type != "cuda" or not torch.cuda.is_available():
        return rows
    room = FILLED * torch.cuda.get_device_properties(device).total_memory
    room -= state_bytes(parameters, parallel, world_size())
    return fitting(rows, room, activation_bytes(config, 4 if recipe.dtype == "float32" else 2))


def fitting(rows: int, room: float, bytes_per_row: int) -> int:
    """Rows per pass, at least one, for the fewest passes of about equal size that fit."""
    most = max(1, int(room / bytes_per_row))
    passes = -(-rows // most)
    return -(-rows // passes)
