"""The projection (METHOD 3) on CPU: the result of `selection.keep_mask`, at the price of a few passes over the weights.

The threshold of a matrix is found among the few entries between two values that a sample of them gives: to select it
from all of them would take most of the time. Where it alone says what stays, no mask is made. numpy works here and not
torch, since matrices can be shared out among threads, while torch would put all its threads to every pass in turn.

Shapes: R rows and C columns of a matrix; a bias is a matrix of one row. What lanes are, and the order of entries, says
`selection`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sparse_model.sparsity.selection import Matrix

Bits = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[Any]

WITHOUT_SIGN = CPU_LARGEST = np.int32(2**31 - 1)
"""As integers, floats without their sign are ordered as their magnitudes are; none is larger than this."""

INFINITE = 0x7F800000
"""The size of infinity; what is not a number is larger."""

CPU_SAMPLED = 127
"""One entry in so many is sampled; a number that no row or column is likely to be a multiple of."""

CPU_SMALL = 2**13
"""Entries of a matrix up to which sampling costs more than it saves."""

CPU_DEVIATIONS = 3
"""How many standard deviations of a sample's count the threshold is looked for beyond where it is expected."""

LOW = 2**32 - 1
"""The lower half of a long integer; no matrix has more entries."""


def project_on_cpu(matrices: Sequence[Matrix], threads: int) -> None:
    """Zero, in place, all but the largest magnitudes of every matrix."""
    found = map(survivors, matrices) if threads == 1 else _pool(threads).map(survivors, matrices)
    for matrix, survivor in zip(matrices, found, strict=True):
        _zero_others(_bits(matrix), survivor)


def _bits(matrix: Matrix) -> Bits:
    bits: Bits = matrix.weight.view(torch.int32).numpy()
    return bits


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="projection")


def survivors(matrix: Matrix) -> int | Mask:
    """What is kept: all that are larger than a size, or, where that does not tell, a mask (R, C).

    That is `budget` entries, the largest, and of each lane at least its `min_alive` largest. Zeros do not count where
    no lane has a minimum: to keep one or not is the same.
    """
    sizes = np.bitwise_and(_bits(matrix), WITHOUT_SIGN)
    if not 0 < matrix.budget < sizes.size:
        return np.full(sizes.shape, matrix.budget > 0)
    least, surplus = _threshold(sizes.ravel(), matrix.budget)
    exact = not surplus and 0 < least <= INFINITE + 1
    if not matrix.min_alive and (exact or not least):
        return max(least - 1, 0)
    keep: Mask = sizes >= least
    if surplus:
        keep.flat[np.flatnonzero(sizes == least)[-surplus:]] = False
    complete = not matrix.min_alive or _keep_alive(keep, sizes, matrix)
    return least - 1 if complete and exact else keep


def _zero_others(bits: Bits, survivor: int | Mask) -> None:
    if isinstance(survivor, int):
        weights = torch.from_numpy(bits).view(torch.float32)
        # one pass, and the only operation here that torch's threads share
        torch.ops.aten.hardshrink.out(weights, float(np.int32(survivor).view(np.float32)), out=weights)
    else:
        # a mask of integers costs a fraction of a boolean one's product
        np.bitwise_and(bits, np.negative(survivor.view(np.int8)), out=bits)


def _threshold(sizes: Bits, k: int) -> tuple[int, int]:
    """(least, surplus): of the sizes (n,), k + surplus are at least `least`, of which more than surplus equal it."""
    found = _threshold_by_sample(sizes, k) if len(sizes) > CPU_SMALL else None
    return _threshold_by_partition(sizes, k) if found is None else found


def _threshold_by_partition(sizes: Bits, k: int) -> tuple[int, int]:
    last = np.partition(sizes, len(sizes) - k)[len(sizes) - k]
    return int(last), int(np.count_nonzero(sizes >= last)) - k


def _threshold_by_sample(sizes: Bits, k: int) -> tuple[int, int] | None:
    """The same in a fraction of the time, or None where the sample misleads.

    A first guess at the smallest of the k is exact to within the sample's noise; counting what is larger tells how far
    it is off, and so, by the sample again, between which two values to look.
    """
    sample: Bits = np.sort(sizes[::CPU_SAMPLED])[::-1]
    place = k / len(sizes) * len(sample)
    high = low = sample[min(int(place), len(sample) - 1)]
    sure: Mask = sizes > high
    possible = sure
    missing = k - int(np.count_nonzero(sure))
    off = abs(missing) / CPU_SAMPLED
    reach = off + CPU_DEVIATIONS * math.sqrt(off) + 2
    if missing > 0:
        low = sample[min(int(place + reach), len(sample) - 1)]
        possible = sizes > low
    elif missing < 0:
        high = sample[int(place - reach)] if place >= reach else CPU_LARGEST
        sure = sizes > high
        missing = k - int(np.count_nonzero(sure))
    if missing <= 0:
        return (int(high) + 1, 0) if missing == 0 else None
    between = sizes[sure ^ possible]
    if missing <= len(between):
        return _threshold_by_partition(between, missing)
    # many may be as large as the lower end, zeros above all
    surplus = len(between) + int(np.count_nonzero(sizes == low)) - missing
    return (int(low), surplus) if surplus >= 0 else None


def _keep_alive(keep: Mask, sizes: Bits, matrix: Matrix) -> bool:
    """Give lanes that have less than their minimum the best of what they lack, and take as much from the others.

    What goes are the smallest kept entries that are not among the best `min_alive` of their own lane. Returns whether
    no lane had less.
    """
    axis = 0 if matrix.by_column else 1
    if matrix.min_alive == 1 and keep.any(axis).all():
        return True
    counts = keep.view(np.uint8).sum(axis, dtype=np.int32)
    short = np.flatnonzero(counts < matrix.min_alive)
    if not len(short):
        return True
    surplus = _surplus(keep, sizes, counts, int((matrix.min_alive - counts[short]).sum()), matrix)
    lanes = np.ascontiguousarray(sizes[:, short].T) if matrix.by_column else sizes[short]
    for _ in range(matrix.min_alive):
        best = lanes.argmax(1)
        keep[(best, short) if matrix.by_column else (short, best)] = True
        np.put_along_axis(lanes, best[:, None], -1, 1)
    keep.flat[surplus] = False
    return False


def _surplus(keep: Mask, sizes: Bits, counts: Indices, count: int, matrix: Matrix) -> Indices:
    """Flat indices of the `count` smallest kept entries whose lanes have more than their minimum without them."""
    sample = np.sort(sizes.ravel()[::CPU_SAMPLED][keep.ravel()[::CPU_SAMPLED]])
    looked_at = 2 * count // CPU_SAMPLED + 1
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
