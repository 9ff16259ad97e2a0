"""The search for the exact threshold of each matrix (see `selection`), among gathered magnitudes or all of them."""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST = tl.constexpr(0x7FFFFFFF)
"""Of 31 bits; no magnitude is larger."""

ABSENT = tl.constexpr(-1)
"""In place of the magnitude of what takes no part in the search: below all."""


@triton.jit
def bit_sizes(bits):
    return bits & 0x7FFFFFFF


@triton.jit
def searched_keys(size, row, column, inside, alive, place, by_column):
    """Magnitudes, ABSENT where there is no entry or one that is kept for its lane's sake; and which those are."""
    lane = tl.where(by_column != 0, column, row)
    along = tl.where(by_column != 0, row, column)
    edge = tl.load(alive + place + lane, mask=inside & (place >= 0), other=0x7FFFFFFFFFFFFFFF)
    edge_size, edge_along = (edge >> 31).to(tl.int32), (edge & 0x7FFFFFFF).to(tl.int32) ^ 0x7FFFFFFF
    kept = inside & (place >= 0) & ((size > edge_size) | ((size == edge_size) & (along <= edge_along)))
    return tl.where(inside & (kept == 0), size, ABSENT), kept


@triton.jit
def find_threshold(
    pointers, shapes, alive, wanted, bounds, counts, regions, keys_ptr, places_ptr, cuts,
    WHOLE: tl.constexpr, SCANNED: tl.constexpr,
):  # fmt: skip
    """The exact threshold of each matrix, and the last flat index at which an entry that equals it is kept.

    Without WHOLE among what was gathered, if that is all there is between two bounds that hold the threshold; with it
    among all entries of the matrices for which it is not.
    """
    g = tl.program_id(0)
    want = tl.load(wanted + g).to(tl.int32)
    above, within = tl.load(counts + g * 2), tl.load(counts + g * 2 + 1)
    low, high = tl.load(bounds + g * 2), tl.load(bounds + g * 2 + 1)
    zeros_too = (want > above + within) & (low == 1)
    gathered = (want > above) & ((want <= above + within) | zeros_too) & (within <= tl.load(regions + g * 2 + 1))
    if want < 1:
        if WHOLE:
            tl.store(cuts + g * 2, LARGEST)
            tl.store(cuts + g * 2 + 1, -1)
    elif gathered & zeros_too:
        if WHOLE:
            tl.store(cuts + g * 2, 0)
            tl.store(cuts + g * 2 + 1, LARGEST)
    elif WHOLE != gathered:
        weight = tl.load(pointers + g).to(tl.pointer_type(tl.int32))
        C, place = tl.load(shapes + g * 5 + 1), tl.load(shapes + g * 5 + 3)
        by_column = tl.load(shapes + g * 5 + 4)
        keys_ptr += tl.load(regions + g * 2)
        places_ptr += tl.load(regions + g * 2)
        if WHOLE:
            total, low, high = tl.load(shapes + g * 5) * C, tl.full([], 0, tl.int32), tl.full([], LARGEST, tl.int32)
        else:
            total = within
            want -= above
        low, missing = _smallest_kept(
            want, low, high, total, keys_ptr, weight, C, alive, place, by_column, WHOLE, SCANNED
        )
        last = _last_tied_kept(
            low, missing, tl.load(shapes + g * 5) * C, total, keys_ptr, places_ptr, weight, C, alive, place, by_column,
            WHOLE, SCANNED,
        )  # fmt: skip
        tl.store(cuts + g * 2, low)
        tl.store(cuts + g * 2 + 1, last)


@triton.jit
def _smallest_kept(
    want, low, high, total, keys_ptr, weight, C, alive, place, by_column, WHOLE: tl.constexpr, SCANNED: tl.constexpr
):
    """The smallest of the `want` largest keys, of those from low to high; and how many that equal it are among them."""
    # keys from low on are at least `want`, those above high are fewer
    n_above = tl.full([], 0, tl.int32)
    while low < high:
        quarter = tl.maximum((high - low) // 4, 1)
        one, two = low + quarter, low + tl.minimum(2 * quarter, high - low)
        three = low + tl.minimum(3 * quarter, high - low)
        a, b, c = (tl.zeros([SCANNED], tl.int32),) * 3
        for start in range(0, total, SCANNED):
            keys = _scanned(start, total, keys_ptr, weight, C, alive, place, by_column, WHOLE, SCANNED)
            a += (keys >= one).to(tl.int32)
            b += (keys >= two).to(tl.int32)
            c += (keys >= three).to(tl.int32)
        n_one, n_two, n_three = tl.sum(a, 0), tl.sum(b, 0), tl.sum(c, 0)
        if n_three >= want:
            low = three
        elif n_two >= want:
            low, high, n_above = two, three - 1, n_three
        elif n_one >= want:
            low, high, n_above = one, two - 1, n_two
        else:
            high, n_above = one - 1, n_one
    return low, want - n_above


@triton.jit
def _last_tied_kept(
    least, missing, size, total, keys_ptr, places_ptr, weight, C, alive, place, by_column,
    WHOLE: tl.constexpr, SCANNED: tl.constexpr,
):  # fmt: skip
    """Of the entries that equal the threshold, the index of the one that is the last of `missing`; LARGEST for all."""
    spare = tl.zeros([SCANNED], tl.int32)
    for start in range(0, total, SCANNED):
        keys = _scanned(start, total, keys_ptr, weight, C, alive, place, by_column, WHOLE, SCANNED)
        spare += (keys == least).to(tl.int32)
    last = tl.full([], LARGEST, tl.int32)
    if (tl.sum(spare, 0) > missing) & (least > 0):
        first = tl.full([], 0, tl.int32)
        last = size - 1
        while first < last:
            middle = first + (last - first) // 2
            n = tl.zeros([SCANNED], tl.int32)
            for start in range(0, total, SCANNED):
                keys = _scanned(start, total, keys_ptr, weight, C, alive, place, by_column, WHOLE, SCANNED)
                i = start + tl.arange(0, SCANNED)
                if WHOLE:
                    index = i
                else:
                    index = tl.load(places_ptr + i, mask=i < total, other=0)
                n += ((keys == least) & (index <= middle)).to(tl.int32)
            if tl.sum(n, 0) >= missing:
                last = middle
            else:
                first = middle + 1
    return last


@triton.jit
def _scanned(start, total, keys_ptr, weight, C, alive, place, by_column, WHOLE: tl.constexpr, SCANNED: tl.constexpr):
    """The next keys of a search: those that were gathered, or those of the whole matrix."""
    i = start + tl.arange(0, SCANNED)
    inside = i < total
    if WHOLE:
        size = bit_sizes(tl.load(weight + i, mask=inside, other=0))
        keys, _ = searched_keys(size, i // C, i % C, inside, alive, place, by_column)
    else:
        keys = tl.load(keys_ptr + i, mask=inside, other=ABSENT)
    return keys
