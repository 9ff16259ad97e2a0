"""The workers of a run: those of the process group, or this process alone."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch.distributed as dist
from torch import Tensor, empty_like

_T = TypeVar("_T")

Parallel = Literal["ddp", "fsdp"]
"""Whether every worker holds the whole model, or its shard of weights, gradients and moments."""


def world_size() -> int:
    """Workers in the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This worker's number; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(value: _T) -> list[_T]:
    """The value that each worker brings, in the order of their ranks; all workers call this alike."""
    if world_size() == 1:
        return [value]
    values: list[_T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(value: _T) -> _T:
    """The value that worker 0 brings; all workers call this alike."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensor of each worker, all of the same shape, in the order of their ranks."""
    if world_size() == 1:
        return [tensor]
    tensors = [empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(tensors, tensor)
    return tensors


def summed(tensor: Tensor) -> Tensor:
    """The tensor, in place, summed over all workers."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor
