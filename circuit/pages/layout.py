"""Where everything of a circuit's graph is drawn. Deterministic: the same circuit gives the same picture.

The residual stream is drawn as *lanes*, one vertical line per channel: nodes that read or write a channel stand on its
lane. Heads and neurons stand in rows of their own between the lanes' nodes. Rows follow the forward pass from bottom to
top. Lanes, heads and neurons are put in an order with few crossings by barycentre sweeps (Sugiyama et al. 1981): each
row in turn is sorted by the mean place of its neighbours, and the best order of all sweeps is kept.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from circuit.graph.record import Circuit, Edge, Node
from circuit.inspect.running import nodes_of
from sparse_model.model.sites import FINAL_SITE

SWEEPS = 24
GAP, ROW, MARGIN = 46.0, 68.0, 64.0
"""Least distance between neighbours in a row, between rows, and around everything, in units of the picture."""
TALLEST_ROW = 120.0
"""Of a wide picture, whose lines would be too flat."""
LABELS = 130.0
"""Room on the left for the names of rows."""
PAIR = 26.0
"""Between a query channel and the key channel it meets."""

HEAD_KINDS = ("attn.q", "attn.k", "attn.v")
_Key = tuple[str, int]
"""What stands in an order: ("lane", channel), a channel of a head as ("q", channel), k or v, ("neuron", channel)."""


@dataclass(frozen=True)
class _Row:
    """One row of the picture: a node site, or q, k and v of a layer together."""

    name: str
    label: str
    y: float


@dataclass(frozen=True)
class Box:
    """A head: its number, and where it is drawn."""

    layer: int
    head: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """`place` of every node; `lanes` channel -> x; `token_y` and `answer_y` of the ends."""

    width: float
    height: float
    rows: tuple[_Row, ...]
    lanes: Mapping[int, float]
    boxes: tuple[Box, ...]
    place: Mapping[Node, tuple[float, float]]
    foot_y: float
    token_y: float
    answer_y: float
    crossings: int = field(default=0)


def laid_out(circuit: Circuit, d_head: int, extra_lanes: Sequence[int] = ()) -> Layout:
    """The picture of a circuit; `extra_lanes` are channels drawn though no kept node is on them."""
    orders = Orders(circuit, d_head, extra_lanes)
    crossings = orders.settle()
    return _placed(circuit, orders, crossings)


def row_name(site: str) -> str:
    """The row a site is drawn in."""
    for kind in HEAD_KINDS:
        if site.endswith(kind):
            return site[: -len(kind)] + "attn.heads"
    return site


def is_lane(site: str) -> bool:
    """Whether the channels of a site are those of the residual stream."""
    return site == FINAL_SITE or site.endswith((".in", ".out"))


class Orders:
    """The order of the lanes, shared by all rows of the residual stream, and of heads and neurons in their rows."""

    def __init__(self, circuit: Circuit, d_head: int, extra_lanes: Sequence[int]) -> None:
        self.d_head = d_head
        lanes = {node.channel for node in nodes_of(circuit) if is_lane(node.site)} | set(extra_lanes)
        self.lanes: list[_Key] = [("lane", channel) for channel in sorted(lanes)]
        self.free: dict[str, list[_Key]] = {}
        for node in nodes_of(circuit):
            if not is_lane(node.site):
                self.free.setdefault(row_name(node.site), []).append(self.key(node))
        for row in self.free:  # heads together from the start
            if row.endswith("attn.heads"):
                self.free[row].sort(key=lambda key: (self.head(key), key[0] == "v", key[1], key[0] != "q"))
        self.edges = [(row_name(e.source.site), self.key(e.source), row_name(e.target.site), self.key(e.target))
                      for e in circuit.edges]  # fmt: skip

    def key(self, node: Node) -> _Key:
        """What decides a node's place in its row."""
        if is_lane(node.site):
            return ("lane", node.channel)
        return ("neuron" if node.site.endswith("mlp.act") else node.site[-1], node.channel)

    def settle(self) -> int:
        """Sweep; the number of crossings of the order that is kept."""
        best, kept = self.crossings(), self._state()
        for _ in range(SWEEPS):
            for row in self.free:
                self.free[row] = self._sorted(self.free[row], row)
            self.lanes = self._sorted(self.lanes, None)
            if (found := self.crossings()) < best:
                best, kept = found, self._state()
        self.lanes, self.free = kept[0], kept[1]
        return best

    def crossings(self) -> int:
        """Pairs of edges between the same two rows that cross."""
        between: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for source_row, source, target_row, target in self.edges:
            ends = (self._rank(source_row, source), self._rank(target_row, target))
            between.setdefault((source_row, target_row), []).append(ends)
        return sum(inversions(ends) for ends in between.values())

    def _state(self) -> tuple[list[_Key], dict[str, list[_Key]]]:
        return list(self.lanes), {row: list(keys) for row, keys in self.free.items()}

    def _rank(self, row: str, key: _Key) -> float:
        keys = self.lanes if key[0] == "lane" else self.free[row]
        return (keys.index(key) + 0.5) / len(keys)

    def _sorted(self, keys: list[_Key], row: str | None) -> list[_Key]:
        """Keys by the mean rank of what edges join them to; a key without edges stays where it was."""
        neighbours: dict[_Key, list[float]] = {key: [] for key in keys}
        for source_row, source, target_row, target in self.edges:
            if source in neighbours and row in (None, source_row):
                neighbours[source].append(self._rank(target_row, target))
            if target in neighbours and row in (None, target_row):
                neighbours[target].append(self._rank(source_row, source))
        old = {key: (i + 0.5) / len(keys) for i, key in enumerate(keys)}
        mean = {key: sum(found) / len(found) if found else old[key] for key, found in neighbours.items()}
        if row is None or not row.endswith("attn.heads"):
            return sorted(keys, key=lambda key: (mean[key], old[key]))
        heads = _means_of(mean, self.head)
        meetings = _means_of(mean, self.meeting)
        return sorted(
            keys,
            key=lambda key: (heads[self.head(key)], self.head(key), meetings[self.meeting(key)], mean[key], old[key]),
        )

    def head(self, key: _Key) -> int:
        return key[1] // self.d_head

    def meeting(self, key: _Key) -> _Key:
        """A query and the key channel it meets stand together."""
        return ("v" if key[0] == "v" else "qk", key[1])


def _means_of(mean: Mapping[_Key, float], group: Callable[[_Key], Any]) -> dict[Any, float]:
    """Mean over the members of each group."""
    members: dict[Any, list[float]] = {}
    for key, value in mean.items():
        members.setdefault(group(key), []).append(value)
    return {name: sum(values) / len(values) for name, values in members.items()}


def inversions(ends: Sequence[tuple[float, float]]) -> int:
    """Pairs of lines, each from (x below) to (x above), that cross; lines that share an end do not."""
    seen: list[float] = []
    found = 0
    for _, y in sorted(ends):  # of equal x the lower y first: they share an end
        found += len(seen) - bisect_right(seen, y)
        insort(seen, y)
    return found


def spread(wanted: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Places in the given order, nearest in square to those wanted, neighbours at least `gaps` (n - 1) apart.

    Pool adjacent violators, on what is left of each place when the gaps before it are taken off.
    """
    offsets = [0.0]
    for gap in gaps:
        offsets.append(offsets[-1] + gap)
    pools: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        mean, count = want - offset, 1
        while pools and pools[-1][0] > mean:
            before, number = pools.pop()
            mean, count = (mean * count + before * number) / (count + number), count + number
        pools.append((mean, count))
    level = [mean for mean, count in pools for _ in range(count)]
    return [base + offset for base, offset in zip(level, offsets, strict=True)]


def _placed(circuit: Circuit, orders: Orders, crossings: int) -> Layout:
    lanes = {channel: LABELS + GAP * i for i, (_, channel) in enumerate(orders.lanes)}
    members = _members(circuit, orders)
    names = [name for name in _row_names(circuit) if name in members]
    place: dict[Node, tuple[float, float]] = {}
    boxes: list[Box] = []
    row_height = min(TALLEST_ROW, max(ROW, (LABELS + GAP * len(lanes)) / (1.5 * max(1, len(names)))))
    height = 2 * MARGIN + row_height * (len(names) + 1)
    rows = []
    for i, name in enumerate(names):
        y = height - MARGIN - row_height * (i + 1.6)
        rows.append(_Row(name, _label(name), y))
        if name in orders.free:
            x = _free_places(orders, members[name], circuit.edges, lanes)
            place |= {node: (at, y) for node, at in x.items()}
            if name.endswith("attn.heads"):
                boxes += _boxes(int(name.split(".")[1]), members[name], x, y, orders.d_head)
        else:
            place |= {node: (lanes[node.channel], y) for node in members[name]}
    every = [at for at, _ in place.values()] + list(lanes.values())
    shift = max(0.0, LABELS - min(every, default=LABELS))
    right = max(every, default=LABELS + 2 * GAP)
    return Layout(
        right + shift + MARGIN,
        height,
        tuple(rows),
        {channel: x + shift for channel, x in lanes.items()},
        tuple(Box(b.layer, b.head, b.x + shift, b.y, b.width, b.height) for b in boxes),
        {node: (x + shift, y) for node, (x, y) in place.items()},
        height - MARGIN - row_height * 0.8,
        height - MARGIN,
        MARGIN * 0.8,
        crossings,
    )


def _row_names(circuit: Circuit) -> list[str]:
    """Rows in the order of the forward pass."""
    layers = sorted({int(site.split(".")[1]) for site in circuit.means if site != FINAL_SITE})
    kinds = ("attn.in", "attn.heads", "attn.out", "mlp.in", "mlp.act", "mlp.out")
    return [*(f"layers.{layer}.{kind}" for layer in layers for kind in kinds), FINAL_SITE]


def _label(name: str) -> str:
    parts = name.split(".")
    return f"{parts[2]} {parts[3]} · layer {parts[1]}" if len(parts) == 4 else name.replace(".", " ")


def _members(circuit: Circuit, orders: Orders) -> dict[str, list[Node]]:
    """Nodes of each row, in their order."""
    members: dict[str, list[Node]] = {}
    for node in nodes_of(circuit):
        members.setdefault(row_name(node.site), []).append(node)
    for row, keys in orders.free.items():
        rank = {key: i for i, key in enumerate(keys)}
        members[row].sort(key=lambda node, rank=rank: rank[orders.key(node)])  # type: ignore[misc]
    return members


def _free_places(
    orders: Orders, nodes: Sequence[Node], edges: Sequence[Edge], lanes: Mapping[int, float]
) -> dict[Node, float]:
    """x of the nodes of a row of heads or neurons: near the lanes they are joined to, in their order; a head's nodes
    side by side."""

    def group(node: Node) -> _Key:
        key = orders.key(node)
        return key if key[0] == "neuron" else ("head", orders.head(key))

    reach: dict[_Key, list[float]] = {group(node): [] for node in nodes}
    inside = set(nodes)
    for edge in edges:
        for node, other in ((edge.source, edge.target), (edge.target, edge.source)):
            if node in inside and is_lane(other.site):
                reach[group(node)].append(lanes[other.channel])
    middle = (min(lanes.values()) + max(lanes.values())) / 2 if lanes else LABELS
    wanted = [sum(found) / len(found) if (found := reach[group(node)]) else middle for node in nodes]
    gaps = [_gap(a, b, orders) for a, b in itertools.pairwise(nodes)]
    return dict(zip(nodes, spread(wanted, gaps), strict=True))


def _gap(a: Node, b: Node, orders: Orders) -> float:
    first, second = orders.key(a), orders.key(b)
    if first[0] != "neuron" and orders.head(first) != orders.head(second):
        return GAP * 1.4
    if first[0] != "neuron" and orders.meeting(first) == orders.meeting(second):
        return PAIR
    return GAP * 0.8


def _boxes(layer: int, nodes: Sequence[Node], x: Mapping[Node, float], y: float, d_head: int) -> list[Box]:
    heads: dict[int, list[float]] = {}
    for node in nodes:
        heads.setdefault(node.channel // d_head, []).append(x[node])
    around = GAP * 0.42
    return [
        Box(layer, head, min(at) - around, y - ROW * 0.3, max(at) - min(at) + 2 * around, ROW * 0.6)
        for head, at in heads.items()
    ]
