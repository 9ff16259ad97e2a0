"""The projection (METHOD 3) in torch operations that never ask the device anything, of whole matrices or of shards.

What is kept of a matrix is what `selection.keep_mask` keeps of the whole: the `min_alive` largest of each neuron or
channel, and the largest of the rest up to the budget, ties going to the lower index. The smallest of these is found
digit by digit, by how many magnitudes have each value of the digit. Where the rows are spread over workers these
counts are added up, so no matrix is gathered: for all matrices together a step takes three small all-reduces and two
all-gathers, whose sizes are known before. Every result stays on the device.

Shapes: R rows and C columns of a whole matrix, of which this worker holds r rows; G matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_model.distributed.workers import gathered_tensors, rank, summed
from sparse_model.sparsity.selection import Matrix, magnitudes

DIGITS = ((20, 2**11), (10, 2**10), (0, 2**10))
"""Of the 31 bits of a float32 without its sign, which as integers are in the order of the magnitudes: place, values."""

NOTHING_THERE = -1
"""Below every magnitude: the candidate of a worker that holds fewer rows."""


class ShardPart(NamedTuple):
    """What this worker holds, r x C, of a matrix of R rows, whose budget and minimum are those of the whole."""

    matrix: Matrix
    rows: int

    @property
    def lane_length(self) -> int:
        """Entries of a whole lane."""
        return self.rows if self.matrix.by_column else self.matrix.weight.shape[1]

    @property
    def kept_per_lane(self) -> int:
        """Entries that are kept for their lane's sake."""
        return min(self.matrix.min_alive, self.lane_length)

    @property
    def chosen_freely(self) -> int:
        """Entries of the whole matrix that are kept for their size alone."""
        lanes = self.matrix.weight.shape[1] if self.matrix.by_column else self.rows
        return max(0, self.matrix.budget - lanes * self.kept_per_lane)


def project_whole(matrices: Sequence[Matrix]) -> None:
    """Zero, in place, all but the largest magnitudes of whole matrices, on any device."""
    project_parts([ShardPart(matrix, len(matrix.weight)) for matrix in matrices], spread=False)


@torch.no_grad()
def project_parts(parts: Sequence[ShardPart], spread: bool) -> None:
    """Zero, in place, all but the largest magnitudes of every matrix; its rows may be spread over all workers.

    Then all workers call this alike.
    """
    if not parts:
        return
    sizes = [magnitudes(part.matrix.weight) for part in parts]
    alive = _alive(parts, sizes, spread)
    # What is kept anyway takes no part in the search: as zero it is below all that can be chosen.
    keys = [m if mask is None else m.masked_fill(mask, 0) for m, mask in zip(sizes, alive, strict=True)]
    thresholds, wanted = _kth_largest(keys, [part.chosen_freely for part in parts], spread)
    tied = [key == t for key, t in zip(keys, thresholds, strict=True)]
    before = _tied_before(tied, spread)
    for i, part in enumerate(parts):
        # Ties at zero may all stay: they are zero. A threshold of zero entries is above every magnitude.
        place = tied[i].view(-1).cumsum(0, dtype=torch.int32).view_as(tied[i]) + before[i]
        keep = (keys[i] > thresholds[i]) | (tied[i] & (place <= wanted[i]))
        mask = alive[i]
        keep = keep if mask is None else keep | mask
        # A mask of integers costs a fraction of a boolean one's product.
        part.matrix.weight.view(torch.int32).bitwise_and_(keep.view(torch.int8).neg_())


def on_device(values: Sequence[int], like: Tensor) -> Tensor:
    """Whole numbers beside a tensor; to copy them from ordinary memory would wait for the device."""
    host = torch.tensor(values, dtype=torch.int64)
    if like.is_cuda and torch.cuda.is_available():
        host = host.pin_memory()
    return host.to(like.device, non_blocking=True)


def _kth_largest(keys: list[Tensor], ks: list[int], spread: bool) -> tuple[Tensor, Tensor]:
    """(G,) the k-th largest key of each matrix, and how many keys equal to it belong to the k.

    For k = 0 that is a number above all magnitudes.
    """
    wanted = on_device(ks, keys[0])
    none = wanted == 0
    thresholds = torch.zeros_like(wanted)
    for shift, values in DIGITS:
        counts = torch.stack([_counts(key, t, shift, values) for key, t in zip(keys, thresholds, strict=True)])
        counts = (summed(counts) if spread else counts).long()
        from_top = counts.flip(1).cumsum(1).flip(1)  # keys with this digit or a larger one
        digit = ((from_top >= wanted.unsqueeze(1)).sum(1, keepdim=True) - 1).clamp_min(0)
        wanted = wanted - (from_top - counts).gather(1, digit).squeeze(1)
        thresholds = thresholds | (digit.squeeze(1) << shift)
    return thresholds.masked_fill(none, torch.iinfo(torch.int32).max).int(), wanted.int()


def _counts(key: Tensor, threshold: Tensor, shift: int, values: int) -> Tensor:
    """(values,) how many keys that agree with the threshold above this digit have each value of it."""
    digit = (key >> shift) & (values - 1)
    if shift + values.bit_length() - 1 < 31:
        above = shift + values.bit_length() - 1
        digit = torch.where((key >> above) == (threshold >> above).to(key.dtype), digit, values)
    bins = torch.zeros(values + 1, dtype=torch.int32, device=key.device)
    flat = digit.flatten().long()
    return bins.scatter_add_(0, flat, torch.ones_like(digit).flatten())[:values]


def _tied_before(tied: list[Tensor], spread: bool) -> Tensor:
    """(G,) how many entries that equal the threshold the workers before this one hold: they hold lower rows."""
    own = torch.stack([t.sum(dtype=torch.int32) for t in tied])
    if not spread:
        return torch.zeros_like(own)
    return torch.stack([torch.zeros_like(own), *gathered_tensors(own)[: rank()]]).sum(0, dtype=torch.int32)


def _alive(parts: Sequence[ShardPart], sizes: list[Tensor], spread: bool) -> list[Tensor | None]:
    """For each matrix (r, C) a mask of the entries that are kept for their lane's sake; None where no lane has any."""
    columns = [(p, m) for p, m in zip(parts, sizes, strict=True) if p.matrix.by_column and p.matrix.min_alive]
    over_rows = iter(_column_levels(columns, spread))
    masks: list[Tensor | None] = []
    for part, magnitude in zip(parts, sizes, strict=True):
        if not part.matrix.min_alive:
            masks.append(None)
        elif part.matrix.by_column:
            masks.append(_best(magnitude, *next(over_rows), axis=0))
        else:
            j = part.kept_per_lane
            level = magnitude.topk(j, dim=1).values[:, -1:]
            masks.append(_best(magnitude, level, j - (magnitude > level).sum(1, keepdim=True), axis=1))
    return masks


def _best(magnitude: Tensor, level: Tensor, wanted: Tensor, axis: int) -> Tensor:
    """Mask of the entries above the level of their row or column, and of the first `wanted` that equal it."""
    tied = magnitude == level
    return (magnitude > level) | (tied & (tied.cumsum(axis, dtype=torch.int32) <= wanted))


def _column_levels(columns: list[tuple[ShardPart, Tensor]], spread: bool) -> list[tuple[Tensor, Tensor]]:
    """For each matrix, by column (1, C): its j-th largest magnitude, and how many that equal it this worker keeps.

    The j largest of a column are among those of each worker's own, and those are gathered.
    """
    if not columns:
        return []
    own = [_candidates(part, magnitude) for part, magnitude in columns]
    flat = torch.cat([candidates.flatten() for candidates in own])
    every = torch.stack(gathered_tensors(flat)) if spread else flat.unsqueeze(0)
    each = torch.split(every, [candidates.numel() for candidates in own], dim=1)
    me = rank() if spread else 0
    return [_level(whole.view(-1, *one.shape), me) for whole, one in zip(each, own, strict=True)]


def _candidates(part: ShardPart, magnitude: Tensor) -> Tensor:
    """(j, C) this worker's largest magnitudes of each column, filled up with ABSENT."""
    j = part.kept_per_lane
    own = magnitude.topk(min(j, len(magnitude)), dim=0).values
    return torch.cat([own, own.new_full((j - len(own), own.shape[1]), NOTHING_THERE)])


def _level(candidates: Tensor, me: int) -> tuple[Tensor, Tensor]:
    """`_column_levels` of one matrix from all workers' candidates (workers, j, C); lower workers hold lower rows."""
    j = candidates.shape[1]
    level = candidates.flatten(0, 1).topk(j, dim=0).values[-1:]
    wanted = j - (candidates > level).sum((0, 1)).unsqueeze(0)
    tied = (candidates == level).sum(1)
    before = tied[:me].sum(0, keepdim=True)
    return level, (wanted - before).clamp_min(0).minimum(tied[me : me + 1])
