"""A model of which every worker holds its rows: weights, gradients and moments (FSDP2, `fully_shard`).

Layers are gathered one at a time while they compute. Everything between two steps works on what a worker holds, a
plain tensor, and not on DTensors: AdamW acts entry by entry, and what is global (norms, counts, the projection) is
summed over workers where it is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sparse_model.distributed.workers import rank, world_size
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer


def sharded_model(config: ModelConfig, compute_dtype: torch.dtype, device: torch.device) -> SparseTransformer:
    """This worker's rows of a model whose initial values are those that the whole model would draw.

    No worker ever holds the whole: parameters are drawn one at a time, and all but its own rows are dropped.
    Layers are units of gathering; embeddings, unembedding and bigram table are one more.
    """
    with torch.device("meta"):
        model = SparseTransformer(config, compute_dtype)
    mesh = init_device_mesh(device.type, (world_size(),))
    # what a layer computes with is sent as it is used; the residual stream, and gradients on their way, stay float32
    sent = MixedPrecisionPolicy(
        param_dtype=None if compute_dtype is torch.float32 else compute_dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=sent)
    fully_shard(model, mesh=mesh)
    _allocate(model, device)
    for name, parameter in model.named_parameters():
        whole = torch.empty(parameter.shape)
        model.reset(name, whole)
        held(parameter).copy_(whole[own_rows(len(whole))])
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether the workers hold rows of this model's parameters instead of all of them."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def held(tensor: Tensor) -> Tensor:
    """What this worker holds of a tensor, in the same memory: its rows of a sharded one, or else all of it."""
    plain = tensor.detach()
    return plain.to_local() if isinstance(plain, DTensor) else plain


def held_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """What this worker holds of a parameter as one of its own, in the same memory; itself if it is not sharded."""
    return nn.Parameter(held(parameter)) if isinstance(parameter, DTensor) else parameter


def sharded_like(local: Tensor, parameter: Tensor) -> Tensor:
    """This worker's rows of something of the parameter's shape, as the sharded whole, in the same memory."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def gathered_whole(tensor: Tensor) -> Tensor:
    """All of a tensor, sharded or not, on every worker; all workers call this alike."""
    plain = tensor.detach()
    return plain.full_tensor() if isinstance(plain, DTensor) else plain


def own_rows(n_rows: int) -> slice:
    """Which of a tensor's rows this worker holds: those of torch.chunk, so that the last workers may hold fewer."""
    each = -(-n_rows // world_size())
    return slice(min(rank() * each, n_rows), min((rank() + 1) * each, n_rows))


def _allocate(model: nn.Module, device: torch.device) -> None:
    """Give parameters on the meta device memory of undefined content, keeping tied ones tied."""
    first: dict[int, str] = {}
    named = list(model.named_parameters(remove_duplicate=False))
    tied = [(name, first[id(p)]) for name, p in named if first.setdefault(id(p), name) != name]
    model.to_empty(device=device)
    for name, owner in tied:
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, model.get_parameter(owner))
