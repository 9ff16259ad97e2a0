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
"""As integers, floats without their sign are ordered as their magnitudes are."""

SAMPLED = 127
"""One entry in so many is sampled; a number that no row or column is likely to be a multiple of."""

SMALL = 2**13
"""Entries of a matrix up to which sampling costs more than it saves."""

DEVIATIONS = 3
"""How many standard deviations of a sample's count the threshold is looked for beyond where it is expected."""

LARGEST = np.int32(2**31 - 1)

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
    sizes = np.bitwise_and(matrix.bits, WITHOUT_SIGN)
    keep = _largest(sizes.ravel(), matrix.budget).reshape(sizes.shape)
    if matrix.min_alive:
        _keep_alive(keep, sizes, matrix)
    return keep


def _largest(sizes: Bits, k: int) -> Mask:
    """Mask (n,) of the k largest of sizes (n,); of equal ones, those of lower index."""
    found = _largest_by_sample(sizes, k) if len(sizes) > SMALL else None
    return _largest_by_partition(sizes, k) if found is None else found


def _largest_by_partition(sizes: Bits, k: int) -> Mask:
    last = np.partition(sizes, len(sizes) - k)[len(sizes) - k]
    largest: Mask = sizes >= last
    surplus = int(np.count_nonzero(largest)) - k
    if surplus:
        largest[np.flatnonzero(sizes == last)[-surplus:]] = False
    return largest


def _largest_by_sample(sizes: Bits, k: int) -> Mask | None:
    """The same in a fraction of the time, or None where the sample misleads.

    A first guess at the smallest of the k is exact to within the sample's noise; counting what is larger tells how far
    it is off, and so, by the sample again, between which two values to look.
    """
    sample: Bits = np.sort(sizes[::SAMPLED])[::-1]
    place = k / len(sizes) * len(sample)
    guess = low = sample[min(int(place), len(sample) - 1)]
    sure: Mask = sizes > guess
    possible = sure
    missing = k - int(np.count_nonzero(sure))
    off = abs(missing) / SAMPLED
    reach = off + DEVIATIONS * math.sqrt(off) + 2
    if missing > 0:
        low = sample[min(int(place + reach), len(sample) - 1)]
        possible = sizes > low
    else:
        sure = sizes > (sample[int(place - reach)] if place >= reach else LARGEST)
        missing = k - int(np.count_nonzero(sure))
    places = np.flatnonzero(sure ^ possible)
    if missing <= 0:
        return sure if missing == 0 else None
    if missing <= len(places):
        sure[places[_largest_by_partition(sizes[places], missing)]] = True
        return sure
    # many may be as large as the lower end, zeros above all
    tied = np.flatnonzero(sizes == low)[: missing - len(places)]
    possible[tied] = True
    return possible if len(places) + len(tied) == missing else None


def _keep_alive(keep: Mask, sizes: Bits, matrix: Matrix) -> None:
    """Give lanes that have less than their minimum the best of what they lack, and take as much from the others.

    What goes are the smallest kept entries that are not among the best `min_alive` of their own lane.
    """
    axis = 0 if matrix.by_column else 1
    if matrix.min_alive == 1 and keep.any(axis).all():
        return
    counts = keep.view(np.uint8).sum(axis, dtype=np.int32)
    short = np.flatnonzero(counts < matrix.min_alive)
    if not len(short):
        return
    surplus = _surplus(keep, sizes, counts, int((matrix.min_alive - counts[short]).sum()), matrix)
    lanes = np.ascontiguousarray(sizes[:, short].T) if matrix.by_column else sizes[short]
    for _ in range(matrix.min_alive):
        best = lanes.argmax(1)
        keep[(best, short) if matrix.by_column else (short, best)] = True
        np.put_along_axis(lanes, best[:, None], -1, 1)
    keep.flat[surplus] = False


def _surplus(keep: Mask, sizes: Bits, counts: Indices, count: int, matrix: Matrix) -> Indices:
    """Flat indices of the `count` smallest kept entries whose lanes have more than their minimum without them."""
    sample = np.sort(sizes.ravel()[::SAMPLED][keep.ravel()[::SAMPLED]])
    looked_at = 2 * count // SAMPLED + 1
    while True:
        smallest = keep & (sizes <= sample[looked_at]) if looked_at < len(sample) else keep
        candidates = _by_size(sizes, np.flatnonzero(smallest))
        lanes = candidates % sizes.shape[1] if matrix.by_column else candidates // sizes.shape[1]
        spare: Indices = candidates[counts[lanes] - _earlier_of_the_same(lanes) > matrix.min_alive]
        if len(spare) >= count:
            return spare[:count]
        assert smallest is not keep, "a budget below the minimum of all lanes"
        looked_at *= 2


def _by_size(sizes: Bits, places: Indices) -> Indices:
    """Flat indices of entries, from the smallest on; of equal ones, the higher index first."""
    # one sort of long integers takes a tenth of the time of an indirect one by two keys
    keys: Indices = (sizes.ravel()[places].astype(np.int64) << 32) + (LOW - places)
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
