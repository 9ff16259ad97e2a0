"""The projection (METHOD 3) on a GPU: all matrices of a model in seven launches, and no question to the device.

1. `_lane_minima`: the last entry that each row, or column, keeps for its own sake. 2. `_bracket`: from a sample of each
matrix, two magnitudes with its threshold between them. 3. `_gather`: one pass that counts what is larger and copies
what is between, a few per cent. 4. `find_threshold`: among these, the exact threshold and, where entries tie with it,
the last index that is kept. Where the sample misled, the same search goes through the whole matrix instead: slow, and
rare. 5. `_zero_the_rest`: one pass that writes.

Entries are in the order of their magnitudes, and where these are equal the one of lower index counts as larger, so that
the same weights always leave the same. The magnitudes of floats without their sign are ordered as integers are.

Shapes: G matrices of R rows and C columns, in tiles of TALL rows and WIDE columns. *Lanes* are rows or columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_model.kernels.ahead import Variant
from sparse_model.kernels.threshold import ABSENT, LARGEST, bit_sizes, find_threshold, searched_keys

TALL, WIDE = 8, 512
"""A tile: one program's part of a matrix in the passes over all of it."""

SAMPLED = 2**14
"""Entries of a matrix that are looked at first; as many as one program holds in registers."""

DEVIATIONS = 6
"""Standard deviations of the sample's count between where the threshold is expected and the ends of the bracket."""

BUFFER_SHARE = 16
"""One entry in so many of a matrix may lie within the bracket; more, and the whole matrix is searched."""

SMALL = 2**15
"""Matrices of up to so many entries are their own bracket."""

SCANNED = 4096
"""Entries that a program looks at together while it searches."""

_LANES, _STEP = {False: 8, True: 64}, {False: 256, True: 32}
"""Rows (or columns) of one program in `_lane_minima`, and how many entries of each it reads together."""


def project_matrices(matrices: Sequence[tuple[Tensor, int, int, bool]]) -> None:
    """Zero, in place, all but the largest magnitudes of every matrix: exactly what `sparsity.keep_mask` keeps.

    A matrix is its weights (R, C), float32, contiguous; its budget, at most R * C; the minimum alive of each lane; and
    whether lanes are columns. Nothing here waits for the device.
    """
    weights = [weight for weight, *_ in matrices]
    plan = _plan(tuple((w.data_ptr(), *w.shape, j, by_column) for w, _, j, by_column in matrices), weights[0].device)
    wanted = [k - plan.kept_alive[i] for i, (_, k, *_) in enumerate(matrices)]
    plan.run(_on_device(wanted, torch.int64, weights[0].device))


def _on_device(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor whose copy to the device nobody waits for."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


@dataclass(frozen=True)
class _Plan:
    """Where everything is: tables on the device that stay the same from step to step."""

    pointers: Tensor  # (G,) addresses of the weights
    shapes: Tensor  # (G, 5): rows, columns, first tile, first lane in `alive` or -1, whether lanes are columns
    tiles: Tensor  # matrix of each tile
    lane_tiles: dict[bool, Tensor]  # by whether lanes are columns: (matrix, first lane, minimum alive) of each program
    regions: Tensor  # (G, 2): where a matrix's part of the buffer begins, and its length
    n_lanes: int
    buffer: int
    kept_alive: tuple[int, ...]
    aligned: bool

    def run(self, wanted: Tensor) -> None:
        """The seven launches, for the number of entries wanted of each matrix beside those kept alive."""
        device, G = wanted.device, len(self.kept_alive)
        alive = torch.empty(max(1, self.n_lanes), dtype=torch.int64, device=device)
        bounds, cuts = (torch.empty((G, 2), dtype=torch.int32, device=device) for _ in range(2))
        counts = torch.zeros((G, 2), dtype=torch.int32, device=device)  # above the bracket, and within it
        keys, places = (torch.empty(self.buffer, dtype=torch.int32, device=device) for _ in range(2))
        where = (self.pointers, self.shapes, alive)
        for by_column, tiles in self.lane_tiles.items():
            _lane_minima[(len(tiles),)](*where, tiles, **_lane_constants(by_column))
        passes = {"TALL": TALL, "WIDE": WIDE, "ALIGNED": self.aligned, "num_warps": 8}
        _bracket[(G,)](*where, wanted, bounds, **_bracket_constants())
        _gather[(len(self.tiles),)](*where, self.tiles, bounds, self.regions, counts, keys, places, **passes)
        for whole in (False, True):
            find_threshold[(G,)](
                *where, wanted, bounds, counts, self.regions, keys, places, cuts, **_threshold_constants(whole)
            )
        _zero_the_rest[(len(self.tiles),)](*where, self.tiles, cuts, **passes)


def _lane_constants(by_column: bool) -> dict[str, Any]:
    return {"BY_COLUMN": by_column, "LANES": _LANES[by_column], "STEP": _STEP[by_column], "num_warps": 4}


def _bracket_constants() -> dict[str, Any]:
    return {"SAMPLED": SAMPLED, "SMALL": SMALL, "DEVIATIONS": DEVIATIONS, "num_warps": 32}


def _threshold_constants(whole: bool) -> dict[str, Any]:
    return {"WHOLE": whole, "SCANNED": SCANNED, "num_warps": 16}


@lru_cache(maxsize=8)
def _plan(matrices: tuple[tuple[int, int, int, int, bool], ...], device: torch.device) -> _Plan:
    shapes, regions, kept_alive = [], [], []
    tiles: list[int] = []
    lane_tiles: dict[bool, list[tuple[int, int, int]]] = {}
    n_lanes = buffer = 0
    for g, (_, R, C, minimum, by_column) in enumerate(matrices):
        lanes, length = (C, R) if by_column else (R, C)
        shapes.append((R, C, len(tiles), n_lanes if minimum else -1, int(by_column)))
        tiles += [g] * (triton.cdiv(R, TALL) * triton.cdiv(C, WIDE))
        regions.append((buffer, R * C if R * C <= SMALL else max(SMALL, R * C // BUFFER_SHARE)))
        buffer += -(-regions[-1][1] // SCANNED) * SCANNED
        kept_alive.append(lanes * min(minimum, length))
        if minimum:
            starts = range(0, lanes, _LANES[by_column])
            lane_tiles.setdefault(by_column, []).extend((g, start, min(minimum, length)) for start in starts)
            n_lanes += lanes
    aligned = all(pointer % 16 == 0 and C % 16 == 0 for pointer, _, C, *_ in matrices)
    tables = {by_column: _on_device(t, torch.int32, device) for by_column, t in lane_tiles.items()}
    return _Plan(
        _on_device([m[0] for m in matrices], torch.int64, device),
        _on_device(shapes, torch.int32, device),
        _on_device(tiles, torch.int32, device),
        tables,
        _on_device(regions, torch.int64, device),
        n_lanes,
        buffer,
        tuple(kept_alive),
        aligned,
    )


@triton.jit
def _lane_minima_without_ties(
    weight, C, lane, exists, length, missing, BY_COLUMN: tl.constexpr, LANES: tl.constexpr, STEP: tl.constexpr
):
    """The edges of lanes by magnitudes alone, in a quarter of the time; and whether ties leave any of them unclear."""
    axis: tl.constexpr = 0 if BY_COLUMN else 1
    if BY_COLUMN:
        a = tl.full([STEP, LANES], -1, tl.int32)
    else:
        a = tl.full([LANES, STEP], -1, tl.int32)
    b, c, d = a, a, a
    for start in range(0, length, STEP):
        along = start + tl.arange(0, STEP)
        if BY_COLUMN:
            offset, inside = along[:, None] * C + lane[None, :], (along < length)[:, None] & exists
        else:
            offset, inside = lane[:, None] * C + along[None, :], (along < length)[None, :] & exists
        size = tl.where(inside, bit_sizes(tl.load(weight + offset, mask=inside, other=0)), -1)
        a, size = tl.maximum(a, size), tl.minimum(a, size)
        b, size = tl.maximum(b, size), tl.minimum(b, size)
        c, size = tl.maximum(c, size), tl.minimum(c, size)
        d = tl.maximum(d, size)
    last = d
    edge = tl.zeros([LANES], tl.int32)
    lacking = tl.zeros([LANES], tl.int32) + tl.minimum(missing, 4)
    while tl.max(lacking, 0) > 0:
        edge = tl.where(lacking > 0, tl.max(a, axis), edge)
        if BY_COLUMN:
            hit = (a == edge[None, :]) & (lacking > 0)[None, :]
        else:
            hit = (a == edge[:, None]) & (lacking > 0)[:, None]
        # where a lane ends, or only zeros are left of it, there is nothing to tell apart
        lacking = tl.where(edge <= 0, 0, lacking - tl.sum(hit.to(tl.int32), axis))
        a, b, c, d = tl.where(hit, b, a), tl.where(hit, c, b), tl.where(hit, d, c), tl.where(hit, -1, d)
    # one that equals the edge may be left, or may never have been among the four of its position
    if BY_COLUMN:
        equal = ((a == edge[None, :]) | (last >= edge[None, :])) & (edge > 0)[None, :]
    else:
        equal = ((a == edge[:, None]) | (last >= edge[:, None])) & (edge > 0)[:, None]
    unclear = tl.max(tl.max(equal.to(tl.int32), axis) + (lacking < 0).to(tl.int32), 0) + (missing > 4).to(tl.int32)
    return tl.maximum(edge, 0).to(tl.int64) << 31, unclear


@triton.jit
def _lane_minima(pointers, shapes, alive, tiles, BY_COLUMN: tl.constexpr, LANES: tl.constexpr, STEP: tl.constexpr):
    """For each lane the smallest of its `minimum` largest entries: magnitude, and how near to the lane's start."""
    g = tl.load(tiles + tl.program_id(0) * 3)
    first = tl.load(tiles + tl.program_id(0) * 3 + 1)
    missing = tl.load(tiles + tl.program_id(0) * 3 + 2)
    weight = tl.load(pointers + g).to(tl.pointer_type(tl.int32))
    R, C, place = tl.load(shapes + g * 5), tl.load(shapes + g * 5 + 1), tl.load(shapes + g * 5 + 3)
    lane = first + tl.arange(0, LANES)
    axis: tl.constexpr = 0 if BY_COLUMN else 1
    if BY_COLUMN:
        exists, length = (lane < C)[None, :], R
    else:
        exists, length = (lane < R)[:, None], C
    edge, unclear = _lane_minima_without_ties(weight, C, lane, exists, length, missing, BY_COLUMN, LANES, STEP)
    if unclear > 0:
        edge = tl.full([LANES], 0x7FFFFFFFFFFFFFFF, tl.int64)
    while (missing > 0) & (unclear > 0):
        # the four largest below the edge of what each position of the tile has seen, a sorted column of four
        if BY_COLUMN:
            a = tl.full([STEP, LANES], -1, tl.int64)
        else:
            a = tl.full([LANES, STEP], -1, tl.int64)
        b, c, d = a, a, a
        for start in range(0, length, STEP):
            along = start + tl.arange(0, STEP)
            if BY_COLUMN:
                offset = along[:, None].to(tl.int64) * C + lane[None, :]
                key_place, inside, below = along[:, None], (along < length)[:, None] & exists, edge[None, :]
            else:
                offset = lane[:, None].to(tl.int64) * C + along[None, :]
                key_place, inside, below = along[None, :], (along < length)[None, :] & exists, edge[:, None]
            size = bit_sizes(tl.load(weight + offset, mask=inside, other=0)).to(tl.int64)
            key = (size << 31) | (key_place ^ 0x7FFFFFFF).to(tl.int64)
            key = tl.where(inside & (key < below), key, -1)
            a, key = tl.maximum(a, key), tl.minimum(a, key)
            b, key = tl.maximum(b, key), tl.minimum(b, key)
            c, key = tl.maximum(c, key), tl.minimum(c, key)
            d = tl.maximum(d, key)
        taken = 0
        while (taken < 4) & (missing > 0):
            edge = tl.max(a, axis)
            if BY_COLUMN:
                hit = a == edge[None, :]
            else:
                hit = a == edge[:, None]
            a, b, c, d = tl.where(hit, b, a), tl.where(hit, c, b), tl.where(hit, d, c), tl.where(hit, -1, d)
            taken += 1
            missing -= 1
    if BY_COLUMN:
        tl.store(alive + place + lane, edge, mask=lane < C)
    else:
        tl.store(alive + place + lane, edge, mask=lane < R)


@triton.jit
def _nth_largest(keys, n):
    """The n-th largest of keys held in registers, 0 where fewer than n are present, LARGEST where n is below 1."""
    low, high = tl.full([], 0, tl.int32), tl.full([], LARGEST, tl.int32)
    for _ in range(31):
        middle = low + (high - low) // 2 + (high - low) % 2
        enough = tl.sum((keys >= middle).to(tl.int32), 0) >= n
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low


@triton.jit
def _bracket(
    pointers, shapes, alive, wanted, bounds, SAMPLED: tl.constexpr, SMALL: tl.constexpr, DEVIATIONS: tl.constexpr
):
    """Two magnitudes of each matrix, both inclusive, between which its threshold very probably lies."""
    g = tl.program_id(0)
    weight = tl.load(pointers + g).to(tl.pointer_type(tl.int32))
    R, C, place = tl.load(shapes + g * 5), tl.load(shapes + g * 5 + 1), tl.load(shapes + g * 5 + 3)
    by_column = tl.load(shapes + g * 5 + 4)
    total, want = R * C, tl.load(wanted + g)
    low, high = tl.full([], 1, tl.int32), tl.full([], LARGEST, tl.int32)
    if total > SMALL:
        # one entry of each of so many equal pieces, at a place that no pattern of rows and columns follows
        i = tl.arange(0, SAMPLED)
        piece = total // SAMPLED
        index = i * piece + (((i * 0x1E3779B1) & 0x7FFFFFFF) >> 7) % piece
        size = bit_sizes(tl.load(weight + index))
        keys, _ = searched_keys(size, index // C, index % C, i >= 0, alive, place, by_column)
        present = tl.sum((keys >= 0).to(tl.int32), 0)
        share = want.to(tl.float32) / total
        expected = share * SAMPLED
        reach = DEVIATIONS * tl.sqrt(expected * (1 - share)) + 16
        low = _nth_largest(keys, tl.minimum(expected + reach, present + 1.0).to(tl.int32))
        high = _nth_largest(keys, (expected - reach).to(tl.int32))
        high = tl.where(expected - reach < 1, LARGEST, high)
        # zeros are never looked for: whether one is kept is the same
        low = tl.maximum(tl.where(expected + reach > present, 0, low), 1)
    tl.store(bounds + g * 2, low)
    tl.store(bounds + g * 2 + 1, high)


@triton.jit
def _tile(pointers, shapes, alive, tiles, TALL: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr):
    """This program's tile: its matrix, addresses, flat indices, which exist, bits, searched keys, and what is alive."""
    g = tl.load(tiles + tl.program_id(0))
    address = tl.load(pointers + g)
    R, C = tl.load(shapes + g * 5), tl.load(shapes + g * 5 + 1)
    t, place, by_column = tl.load(shapes + g * 5 + 2), tl.load(shapes + g * 5 + 3), tl.load(shapes + g * 5 + 4)
    if ALIGNED:
        address, C = tl.multiple_of(address, 16), tl.multiple_of(C, 16)
    weight = address.to(tl.pointer_type(tl.int32))
    t = tl.program_id(0) - t
    across = tl.cdiv(C, WIDE)
    row = ((t // across) * TALL + tl.arange(0, TALL))[:, None]
    column = ((t % across) * WIDE + tl.arange(0, WIDE))[None, :]
    inside = (row < R) & (column < C)
    index = row * C + column
    bits = tl.load(weight + index, mask=inside, other=0)
    size = bit_sizes(bits)
    # one edge for a whole row, or column, of the tile; taken apart before it is spread over it
    if by_column != 0:
        of_column = tl.load(alive + place + column, mask=(column < C) & (place >= 0), other=0)
        edge_size = tl.broadcast_to((of_column >> 31).to(tl.int32), (TALL, WIDE))
        edge_along = tl.broadcast_to((of_column & 0x7FFFFFFF).to(tl.int32) ^ 0x7FFFFFFF, (TALL, WIDE))
        along = tl.broadcast_to(row, (TALL, WIDE))
    else:
        of_row = tl.load(alive + place + row, mask=(row < R) & (place >= 0), other=0)
        edge_size = tl.broadcast_to((of_row >> 31).to(tl.int32), (TALL, WIDE))
        edge_along = tl.broadcast_to((of_row & 0x7FFFFFFF).to(tl.int32) ^ 0x7FFFFFFF, (TALL, WIDE))
        along = tl.broadcast_to(column, (TALL, WIDE))
    kept = inside & (place >= 0) & ((size > edge_size) | ((size == edge_size) & (along <= edge_along)))
    return g, weight, index, inside, bits, tl.where(inside & (kept == 0), size, ABSENT), kept


@triton.jit
def _gather(
    pointers, shapes, alive, tiles, bounds, regions, counts, keys_ptr, places_ptr,
    TALL: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Count what is above the bracket; copy keys and flat indices of what is within it, in any order."""
    g, _, index, _, _, keys, _ = _tile(pointers, shapes, alive, tiles, TALL, WIDE, ALIGNED)
    low, high = tl.load(bounds + g * 2), tl.load(bounds + g * 2 + 1)
    above = tl.sum(tl.sum((keys > high).to(tl.int32), 1), 0)
    if above > 0:
        tl.atomic_add(counts + g * 2, above, sem="relaxed")
    within = ((keys >= low) & (keys <= high)).to(tl.int32)
    per_row = tl.sum(within, 1)
    found = tl.sum(per_row, 0)
    if found > 0:
        start = tl.atomic_add(counts + g * 2 + 1, found, sem="relaxed")
        before = start + tl.cumsum(per_row, 0) - per_row
        slot = before[:, None] + tl.cumsum(within, 1) - within
        fits = (within != 0) & (slot < tl.load(regions + g * 2 + 1))
        region = tl.load(regions + g * 2)
        tl.store(keys_ptr + region + slot, keys, mask=fits)
        tl.store(places_ptr + region + slot, tl.broadcast_to(index, (TALL, WIDE)), mask=fits)


@triton.jit
def _zero_the_rest(pointers, shapes, alive, tiles, cuts, TALL: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr):
    g, weight, index, inside, bits, keys, kept = _tile(pointers, shapes, alive, tiles, TALL, WIDE, ALIGNED)
    threshold, last = tl.load(cuts + g * 2), tl.load(cuts + g * 2 + 1)
    kept = kept | (keys > threshold) | ((keys == threshold) & (index <= last))
    tl.store(weight + index, tl.where(kept, bits, 0), mask=inside)


def selection_variants() -> list[Variant]:
    """Every kernel here, as it is launched."""
    where = {"pointers": "*i64", "shapes": "*i32", "alive": "*i64"}
    search = {"wanted": "*i64", "bounds": "*i32"}
    gathered = {"regions": "*i64", "counts": "*i32", "keys_ptr": "*i32", "places_ptr": "*i32"}
    found = []

    def add(name: str, kernel: Any, signature: dict[str, str], constants: dict[str, Any]) -> None:
        warps = constants.pop("num_warps")
        found.append(Variant(f"projection {name}", kernel, where | signature, constants, warps))

    for by_column in (False, True):
        add(
            f"minima of {'columns' if by_column else 'rows'}",
            _lane_minima,
            {"tiles": "*i32"},
            _lane_constants(by_column),
        )
    add("bracket", _bracket, search, _bracket_constants())
    for whole in (False, True):
        arguments = search | gathered | {"cuts": "*i32"}
        add(f"threshold{' of the whole' if whole else ''}", find_threshold, arguments, _threshold_constants(whole))
    for aligned in (False, True):
        passes = {"TALL": TALL, "WIDE": WIDE, "ALIGNED": aligned, "num_warps": 8}
        label = "" if aligned else ", unaligned"
        add(f"gather{label}", _gather, {"tiles": "*i32", "bounds": "*i32"} | gathered, dict(passes))
        add(f"zero the rest{label}", _zero_the_rest, {"tiles": "*i32", "cuts": "*i32"}, dict(passes))
    return found
