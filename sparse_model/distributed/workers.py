"""The workers of a run: those of the process group, or this process alone."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch.distributed as dist
from torch import Tensor, cat, empty_like, from_numpy

from sparse_model.distributed.kinds import Parallel as Parallel

_T = TypeVar("_T")


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


class Hosts:
    """The programs of all workers, which tell each other something without asking their devices."""

    def __init__(self) -> None:
        """All workers make one alike."""
        several = world_size() > 1
        self._group = dist.new_group(backend="gloo") if several and dist.get_backend() != "gloo" else None

    def any(self, flag: bool) -> bool:
        """Whether it holds for any of the workers; all call this alike."""
        if world_size() == 1:
            return flag
        box = np.array([flag], dtype=np.int32)
        dist.all_reduce(from_numpy(box), group=self._group)
        return bool(box[0])


BUCKET = 2**23
"""Numbers that are sent at a time: each sending has a price, and what is sent is copied."""


def averaged(tensors: list[Tensor]) -> None:
    """Make each tensor, in place, the mean over all workers, which hold tensors of the same shapes."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    for i, tensor in enumerate(tensors):
        bucket.append(tensor)
        if i + 1 == len(tensors) or sum(t.numel() for t in bucket) + tensors[i + 1].numel() > BUCKET:
            _average(bucket)
            bucket = []


def _average(bucket: list[Tensor]) -> None:
    flat = cat([tensor.flatten() for tensor in bucket]).div_(world_size())
    dist.all_reduce(flat)
    for tensor, mean in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):  # type: ignore[no-untyped-call]
        tensor.copy_(mean.view_as(tensor))
