"""The projection (METHOD 3) of matrices whose rows are spread over workers: exact, and no matrix is gathered.

What is kept of a matrix is what `sparsity.keep_mask` keeps of the whole: the `min_alive` largest of each neuron or
channel, and the largest of the rest up to the budget, ties going to the lower index. The smallest of these is found
digit by digit: workers add up how many of their magnitudes have each value of the digit. All matrices are searched at
once, so a step takes three small all-reduces and one all-gather, and one more where entries tie.

Shapes: R rows and C columns of a whole matrix, of which this worker holds r rows; G matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_model.distributed.sharding import held
from sparse_model.distributed.workers import gathered_tensors, rank, summed, world_size
from sparse_model.sparsity.projection import Group

DIGITS = ((20, 2**11), (10, 2**10), (0, 2**10))
"""Of the 31 bits of a float32 without its sign, which as integers are in the order of the magnitudes: place, values."""

ABSENT = -1
"""Below every magnitude: the candidate of a worker that holds fewer rows."""


@dataclass(frozen=True)
class _Shard:
    """This worker's rows of one matrix: r x C, magnitudes as ordered integers. A bias is a matrix of one column."""

    group: Group
    weight: Tensor
    magnitude: Tensor
    budget: int

    @classmethod
    def of(cls, group: Group, budget: int) -> _Shard:
        weight = held(group.weight)
        matrix = weight.view(len(weight), group.weight.numel() // len(group.weight))
        return cls(group, matrix, matrix.view(torch.int32) & torch.iinfo(torch.int32).max, budget)

    @property
    def kept_alive(self) -> int:
        """Entries of the whole matrix that are kept for their neuron's or channel's sake."""
        rows, columns = len(self.group.weight), self.weight.shape[1]
        if self.group.by_column:
            rows, columns = columns, rows
        return rows * min(self.group.min_alive, columns)


@torch.no_grad()
def project_shards(groups: list[Group], progress: float) -> None:
    """`sparsity.project` for groups of sharded weights; all workers call this alike."""
    shards = [
        _Shard.of(group, group.budget(progress))
        for group in groups
        if group.fraction < 1 and group.budget(progress) < group.weight.numel()
    ]
    if not shards:
        return
    alive = _alive(shards)
    # What is kept anyway takes no part in the search: as zero it is below all that can be chosen.
    keys = [s.magnitude.masked_fill(mask, 0) for s, mask in zip(shards, alive, strict=True)]
    edge = _kth_largest([key.flatten() for key in keys], [s.budget - s.kept_alive for s in shards])
    chosen = [key >= threshold for key, threshold in zip(keys, edge.thresholds, strict=True)]
    _drop_surplus_ties(keys, chosen, edge)
    for shard, mask, more in zip(shards, alive, chosen, strict=True):
        shard.weight.view(torch.int32).bitwise_and_((mask | more).view(torch.int8).neg_())


@dataclass(frozen=True)
class _Edge:
    """For each group the k-th largest key, how many keys equal to it belong to the k, and how many there are."""

    thresholds: list[int]
    wanted: list[int]
    tied: list[int]


def _kth_largest(keys: list[Tensor], ks: list[int]) -> _Edge:
    """The k-th largest key of each group over all workers; keys are flat magnitudes as integers."""
    wanted = torch.tensor(ks, device=keys[0].device)
    thresholds = torch.zeros_like(wanted)
    for shift, values in DIGITS:
        digits = [(key >> shift) & (values - 1) for key in keys]
        counts = summed(torch.stack([torch.bincount(digit, minlength=values) for digit in digits]))
        from_top = counts.flip(1).cumsum(1).flip(1)  # keys with this digit or a larger one
        digit_of_k = (from_top >= wanted.unsqueeze(1)).sum(1) - 1
        tied = counts.gather(1, digit_of_k.unsqueeze(1)).squeeze(1)
        wanted -= from_top.gather(1, digit_of_k.unsqueeze(1)).squeeze(1) - tied
        thresholds |= digit_of_k << shift
        keys = [key.masked_select(digit == d) for key, digit, d in zip(keys, digits, digit_of_k.tolist(), strict=True)]
    return _Edge(thresholds.tolist(), wanted.tolist(), tied.tolist())


def _drop_surplus_ties(keys: list[Tensor], chosen: list[Tensor], edge: _Edge) -> None:
    """Where more entries equal the threshold than the budget allows, keep those of the lowest index only.

    Lower workers hold lower rows, so each needs no more than the number of ties of those before it.
    """
    # Ties at zero need no breaking: kept or not, they are zero.
    at = [g for g, t in enumerate(edge.thresholds) if t > 0 and edge.tied[g] > edge.wanted[g]]
    if not at:
        return
    positions = [(keys[g] == edge.thresholds[g]).flatten().nonzero().flatten() for g in at]
    own = torch.tensor([len(p) for p in positions], device=keys[0].device)
    before = torch.stack(gathered_tensors(own)[: rank()] or [torch.zeros_like(own)]).sum(0).tolist()
    for g, tied, lower in zip(at, positions, before, strict=True):
        chosen[g].view(-1)[tied[max(0, edge.wanted[g] - lower) :]] = False


def _alive(shards: list[_Shard]) -> list[Tensor]:
    """For each matrix (r, C) a mask of the entries that are kept for their neuron's or channel's sake."""
    over_rows = iter(_column_levels([s for s in shards if s.group.by_column and s.group.min_alive]))
    masks = []
    for shard in shards:
        j = min(shard.group.min_alive, shard.weight.shape[1])
        if not shard.group.min_alive:
            masks.append(torch.zeros_like(shard.magnitude, dtype=torch.bool))
        elif shard.group.by_column:
            masks.append(_best(shard.magnitude, *next(over_rows), axis=0))
        else:
            level = shard.magnitude.topk(j, dim=1).values[:, -1:]
            wanted = j - (shard.magnitude > level).sum(1, keepdim=True)
            masks.append(_best(shard.magnitude, level, wanted, axis=1))
    return masks


def _best(magnitude: Tensor, level: Tensor, wanted: Tensor, axis: int) -> Tensor:
    """Mask of the entries above the level of their row or column, and of the first `wanted` that equal it."""
    tied = magnitude == level
    if int(tied.sum()) > int(wanted.sum()):
        tied &= tied.cumsum(axis) <= wanted
    return tied | (magnitude > level)


def _column_levels(shards: list[_Shard]) -> list[tuple[Tensor, Tensor]]:
    """For each matrix, by column (1, C): its j-th largest magnitude, and how many that equal it this worker keeps.

    The j largest of a column are among those of each worker's own, and those are gathered.
    """
    if not shards:
        return []
    own = [_candidates(shard) for shard in shards]
    flat = torch.cat([candidates.flatten() for candidates in own])
    every = torch.split(torch.stack(gathered_tensors(flat)), [candidates.numel() for candidates in own], dim=1)
    return [_level(whole.view(world_size(), *one.shape)) for whole, one in zip(every, own, strict=True)]


def _candidates(shard: _Shard) -> Tensor:
    """(j, C) this worker's largest magnitudes of each column, filled up with ABSENT."""
    j = min(shard.group.min_alive, len(shard.group.weight))
    own = shard.magnitude.topk(min(j, len(shard.magnitude)), dim=0).values
    return torch.cat([own, own.new_full((j - len(own), own.shape[1]), ABSENT)])


def _level(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """`_column_levels` of one matrix from all workers' candidates (workers, j, C); lower workers hold lower rows."""
    j = candidates.shape[1]
    level = candidates.flatten(0, 1).topk(j, dim=0).values[-1:]
    wanted = j - (candidates > level).sum((0, 1)).unsqueeze(0)
    tied = (candidates == level).sum(1)
    before = tied[: rank()].sum(0, keepdim=True)
    return level, (wanted - before).clamp_min(0).minimum(tied[rank() : rank() + 1])
