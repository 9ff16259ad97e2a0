"""The projection (METHOD 3) on CPU: the result of `sparsity.keep_mask`, at the price of a few passes over the weights.

The threshold of a matrix is found among the few entries between two values that a sample of them gives: to select it
from all of them would take most of the time. numpy works here and not torch, since matrices can be shared out among
threads, while torch would put all its threads to every pass in turn.

Shapes: R rows and C columns of a matrix; a bias is a matrix of one row. *Lanes* are what has a minimum alive: rows, or
columns. Entries are ordered by magnitude, and where that is equal the one of lower index (row-major) counts as larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[Any]

WITHOUT_SIGN = np.int32(2**31 - 1)
SAMPLED = 61
"""One entry in so many is sampled; a number that no row or column is likely to be a multiple of."""

SMALL = 2**13
"""Entries of a matrix up to which sampling costs more than it saves."""

DEVIATIONS = 4
"""How many standard deviations of a sample's count the threshold is looked for on either side."""

LOW = 2**32 - 1
"""The lower half of a long integer; no matrix has more entries."""


class Matrix(NamedTuple):
    """What is to be projected: the bits (R, C) of its float32 weights, the budget k, and the minimum per lane."""

    bits: Bits
    budget: int
    min_alive: int
    by_column: bool


def project_matrices(matrices: Sequence[Matrix], threads: int) -> None:
    """Zero, in place, all but the largest magnitudes of every matrix."""
    if threads == 1:
        _project_each(matrices)
    else:
        list(_pool(threads).map(_project_each, _shares(matrices, threads)))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="projection")


def _shares(matrices: Sequence[Matrix], threads: int) -> list[list[Matrix]]:
    """About as many weights for each thread."""
    shares: list[list[Matrix]] = [[] for _ in range(threads)]
    sizes = [0] * threads
    for matrix in sorted(matrices, key=lambda matrix: -matrix.bits.size):
        least = sizes.index(min(sizes))
        shares[least].append(matrix)
        sizes[least] += matrix.bits.size
    return shares


def _project_each(matrices: Sequence[Matrix]) -> None:
    for matrix in matrices:
        keep = kept(matrix)
        # a mask of integers costs a fraction of a boolean one's product
        np.bitwise_and(matrix.bits, np.negative(keep.view(np.int8)), out=matrix.bits)


def kept(matrix: Matrix) -> Mask:
    """Mask (R, C) of exactly `budget` entries: the largest, and of each lane at least its `min_alive` largest."""
    # below 0, the smaller the larger the magnitude: partition takes 50 times longer where what it looks for is among
    # very many equals at the lower end, and zeros are many
    rank = np.bitwise_and(matrix.bits, WITHOUT_SIGN)
    np.invert(rank, out=rank)
    last = _smallest(rank.ravel(), matrix.budget)
    keep: Mask = rank <= last
    surplus = int(np.count_nonzero(keep)) - matrix.budget
    if surplus:
        keep.flat[np.flatnonzero(rank == last)[-surplus:]] = False
    if matrix.min_alive:
        _keep_alive(keep, rank, matrix)
    return keep


def _smallest(ranks: Bits, k: int) -> np.int32:
    """The k-th smallest of ranks (n,), which are below 0."""
    found = _between(ranks, k)
    return np.partition(ranks, k - 1)[k - 1] if found is None else found


def _between(ranks: Bits, k: int) -> np.int32 | None:
    """The same at a fraction of the time, or None where the sample misleads."""
    if len(ranks) <= SMALL:
        return None
    sample = np.sort(ranks[::SAMPLED])
    share = k / len(ranks)
    slack = DEVIATIONS * math.sqrt(len(sample) * share * (1 - share)) + 1
    low, high = int(len(sample) * share - slack), int(len(sample) * share + slack)
    above_all = np.int32(0)
    top = sample[high] if high < len(sample) else above_all
    between = ranks < top
    if np.count_nonzero(between) < k:
        return top if np.count_nonzero(ranks <= top) >= k else None
    if low > 0:
        below = ranks < sample[low]
        k -= int(np.count_nonzero(below))
        between ^= below
    return np.partition(ranks[np.flatnonzero(between)], k - 1)[k - 1] if k > 0 else None


def _keep_alive(keep: Mask, rank: Bits, matrix: Matrix) -> None:
    """Give lanes that have less than their minimum the best of what they lack, and take as much from the others.

    What goes are the smallest kept entries that are not among the best `min_alive` of their own lane.
    """
    counts = keep.view(np.uint8).sum(0 if matrix.by_column else 1, dtype=np.int32)
    short = np.flatnonzero(counts < matrix.min_alive)
    if not len(short):
        return
    missing = int((matrix.min_alive - counts[short]).sum())
    surplus = _surplus(keep, rank, counts, missing, matrix)
    lanes = rank[:, short].T if matrix.by_column else rank[short]
    lane, place = np.divmod(np.flatnonzero(_best(lanes, matrix.min_alive)), lanes.shape[1])
    keep[(place, short[lane]) if matrix.by_column else (short[lane], place)] = True
    keep.flat[surplus] = False


def _best(lanes: Bits, count: int) -> Mask:
    """Mask of the `count` largest of each of the lanes, given as rows."""
    level = np.partition(lanes, count - 1, axis=1)[:, count - 1 : count]
    best: Mask = lanes < level
    tied = lanes == level
    wanted = count - np.count_nonzero(best, axis=1)[:, None]
    if np.count_nonzero(tied) > wanted.sum():
        tied &= tied.cumsum(1) <= wanted
    best |= tied
    return best


def _surplus(keep: Mask, rank: Bits, counts: Indices, count: int, matrix: Matrix) -> Indices:
    """Flat indices of the `count` smallest kept entries whose lanes have more than their minimum without them."""
    sample = np.sort(rank.ravel()[::SAMPLED][keep.ravel()[::SAMPLED]])
    looked_at = 2 * count // SAMPLED + 1
    while True:
        smallest = keep & (rank >= sample[-looked_at]) if looked_at <= len(sample) else keep
        candidates = _by_rank(rank, np.flatnonzero(smallest))
        lanes = candidates % rank.shape[1] if matrix.by_column else candidates // rank.shape[1]
        spare: Indices = candidates[counts[lanes] - _earlier_of_the_same(lanes) > matrix.min_alive]
        if len(spare) >= count:
            return spare[:count]
        assert smallest is not keep, "a budget below the minimum of all lanes"
        looked_at *= 2


def _by_rank(rank: Bits, places: Indices) -> Indices:
    """Flat indices of entries, from the smallest on; of equal ones, the higher index first."""
    # one sort of long integers takes a tenth of the time of an indirect one by two keys
    keys: Indices = (-rank.ravel()[places].astype(np.int64) << 32) + (LOW - places)
    keys.sort()
    ordered: Indices = LOW - (keys & LOW)
    return ordered


def _earlier_of_the_same(values: Indices) -> Indices:
    """For each of the values, how many before it are equal to it."""
    ordered = np.sort((values << 32) + np.arange(len(values)))
    values, places = ordered >> 32, ordered & LOW
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    lengths = np.diff(np.append(first, len(values)))
    earlier = np.empty_like(places)
    earlier[places] = np.arange(len(values)) - np.repeat(first, lengths)
    return earlier
