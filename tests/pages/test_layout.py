"""The picture of a circuit: places, lanes, crossings."""

from __future__ import annotations

import itertools
import random

import pytest

from circuit.graph.record import Circuit, Edge, Node
from circuit.pages.layout import Orders, inversions, laid_out, spread
from pages.stories import Story

GRID = [(x, y) for x in range(4) for y in range(4)]


@pytest.mark.parametrize("seed", range(20))
def test_crossings_are_counted_as_by_looking_at_every_pair(seed: int) -> None:
    lines = random.Random(seed).sample(GRID, 9)
    crossing = [(a, b) for a, b in itertools.combinations(lines, 2) if (a[0] - b[0]) * (a[1] - b[1]) < 0]
    assert inversions([(float(x), float(y)) for x, y in lines]) == len(crossing)


@pytest.mark.parametrize("seed", range(20))
def test_spread_is_the_nearest_with_the_gaps(seed: int) -> None:
    rng = random.Random(seed)
    wanted, gaps = [rng.uniform(0, 30) for _ in range(5)], [rng.uniform(1, 9) for _ in range(4)]
    places = spread(wanted, gaps)
    assert all(b - a >= gap - 1e-9 for (a, b), gap in zip(itertools.pairwise(places), gaps, strict=True))
    cost = sum((a - b) ** 2 for a, b in zip(places, wanted, strict=True))
    for _ in range(300):  # no other places that keep the gaps are nearer
        other, at = [], -1e9
        for place, gap in zip(places, [0.0, *gaps], strict=True):
            at = max(at + gap, place + rng.gauss(0, 1))
            other.append(at)
        assert sum((a - b) ** 2 for a, b in zip(other, wanted, strict=True)) >= cost - 1e-9


def tangled(told: Story) -> Circuit:
    """Sixteen lanes read by eight neurons, every neuron by two lanes that lie far apart by number."""
    read = tuple(range(16))
    nodes = {"layers.0.mlp.in": read, "layers.0.mlp.act": tuple(range(8))}
    edges = tuple(
        Edge("up", 0, Node("layers.0.mlp.in", channel), Node("layers.0.mlp.act", (channel * 5) % 8), 1.0)
        for channel in read
    )
    changes = {"nodes": nodes, "edges": edges, "n_nodes": 24, "n_edges": 16}
    return Circuit.model_validate(told.circuit.model_dump() | changes)


def test_sweeps_untangle_what_can_be_drawn_without_a_crossing(told: Story) -> None:
    circuit = tangled(told)
    assert Orders(circuit, 4, ()).crossings() > 20
    assert laid_out(circuit, 4).crossings == 0


def test_the_same_circuit_gives_the_same_picture(told: Story) -> None:
    shuffled = list(tangled(told).edges)
    random.Random(3).shuffle(shuffled)
    other = tangled(told).model_copy(update={"edges": tuple(shuffled)})
    assert laid_out(tangled(told), 4) == laid_out(tangled(told), 4)
    assert laid_out(other, 4).crossings == 0


def test_rows_follow_the_forward_pass_and_nodes_of_a_channel_share_a_lane(told: Story) -> None:
    layout = laid_out(told.circuit, 4)
    heights = [row.y for row in layout.rows]
    assert heights == sorted(heights, reverse=True)
    assert [row.name for row in layout.rows][:3] == ["layers.0.attn.in", "layers.0.attn.heads", "layers.0.attn.out"]
    place = layout.place
    assert place[Node("layers.0.attn.out", 5)][0] == place[Node("layers.1.mlp.in", 5)][0] == layout.lanes[5]
    assert place[Node("layers.0.attn.q", 0)][1] == place[Node("layers.0.attn.v", 1)][1]
    (box,) = layout.boxes
    assert (box.layer, box.head) == (0, 0)
    assert all(0 < x < layout.width and 0 < y < layout.height for x, y in place.values())


def test_nodes_of_a_row_do_not_lie_on_one_another(told: Story) -> None:
    for circuit in (told.circuit, tangled(told)):
        places = list(laid_out(circuit, 4).place.values())
        apart = [abs(a[0] - b[0]) for a, b in itertools.combinations(places, 2) if a[1] == b[1]]
        assert min(apart) >= 25
