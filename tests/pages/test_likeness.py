"""Circuits compared: with themselves, with the same in another guise, with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit.graph.record import Circuit, Node, fingerprint
from circuit.inspect.likeness import Member, correlations, jaccard, likenesses
from circuit.inspect.running import nodes_of
from pages.conftest import Open
from pages.stories import Story
from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer
from sweeps.pages.compare import comparison_data, comparison_page

NEURONS = torch.roll(torch.arange(64), 5)
"""Neuron i of the story is neuron i + 5 in its other guise."""


def in_other_guise(told: Story) -> Member:
    """The same circuit in the same model with its neurons in another order."""
    model = SparseTransformer(told.model.config)
    model.load_state_dict(told.model.state_dict())
    for layer in model.layers:
        with torch.no_grad():
            layer.mlp.up.weight.copy_(layer.mlp.up.weight[NEURONS].clone())
            layer.mlp.up.bias.copy_(layer.mlp.up.bias[NEURONS].clone())
            layer.mlp.down.weight.copy_(layer.mlp.down.weight[:, NEURONS].clone())
    moved = {"layers.1.mlp.act": (8,)}
    content = told.circuit.model_dump()

    def renamed(node: Any) -> Node:
        return Node(node[0], 8) if tuple(node) == ("layers.1.mlp.act", 3) else Node(*node)

    edges = [edge._replace(source=renamed(edge.source), target=renamed(edge.target)) for edge in told.circuit.edges]
    means = {
        site: tuple(values[i] for i in NEURONS.tolist()) if site.endswith("mlp.act") else values
        for site, values in told.circuit.means.items()
    }
    changes = {"nodes": told.circuit.nodes | moved, "edges": tuple(edges), "means": means, "model": fingerprint(model)}
    return Member(Circuit.model_validate(content | changes), model)


def test_a_circuit_is_wholly_like_itself_and_random_nodes_are_not(told: Story) -> None:
    (same,) = likenesses([Member(told.circuit, told.model)] * 2, told.task.heldout)
    assert same.nodes is not None
    assert same.edges is not None
    for figure in (same.nodes, same.edges, same.matched, same.attention):
        assert figure.value == pytest.approx(1, abs=1e-5)
    assert same.nodes.null is not None
    assert same.nodes.null < 0.3
    assert same.matched.null is not None
    assert same.matched.null < 0.7
    assert all(match.first == match.second for match in same.matches if abs(match.activation) < 1 - 1e-9)


def test_nodes_of_another_model_are_found_by_what_they_do(told: Story) -> None:
    other = in_other_guise(told)
    (like,) = likenesses([Member(told.circuit, told.model), other], told.task.heldout)
    assert (like.nodes, like.edges) == (None, None)
    assert like.matched.value == pytest.approx(1)
    assert like.attention.value == pytest.approx(1, abs=1e-5)
    pairs = {match.first: match.second for match in like.matches}
    assert pairs["layers.1.mlp.act.3"] == "layers.1.mlp.act.8"
    effects = {match.first: match.effect for match in like.matches}
    assert effects["layers.1.mlp.act.3"] == pytest.approx(1, abs=1e-3)


def test_nodes_match_within_a_kind_of_site_only(told: Story) -> None:
    (like,) = likenesses([Member(told.circuit, told.model), in_other_guise(told)], told.task.heldout)
    for match in like.matches:
        assert match.first.split(".")[-2:-1] == match.second.split(".")[-2:-1]


def test_what_cannot_be_compared_is_refused(told: Story) -> None:
    member = Member(told.circuit, told.model)
    other = Member(told.circuit.model_copy(update={"task": "other"}), told.model)
    with pytest.raises(InputError, match="circuits of the tasks"):
        likenesses([member, other], told.task.heldout)
    strange = Member(told.circuit.model_copy(update={"model": "0" * 16}), told.model)
    with pytest.raises(InputError, match="model"):
        likenesses([member, strange], told.task.heldout)


def test_correlations_are_numpys(told: Story) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(50, 3, generator=generator), torch.randn(50, 2, generator=generator)
    expected = torch.corrcoef(torch.cat([a, b], 1).T)[:3, 3:]
    assert correlations(a, b) == pytest.approx(expected.numpy(), abs=1e-6)
    assert correlations(torch.ones(9, 1), torch.randn(9, 1))[0, 0] == 0
    assert jaccard({1, 2, 3}, {2, 3, 4}) == 0.5
    assert len(nodes_of(told.circuit)) == told.circuit.n_nodes


def test_a_page_shows_graphs_side_by_side(told: Story, opened: Open, tmp_path: Path) -> None:
    other = in_other_guise(told)
    found = likenesses([Member(told.circuit, told.model), other], told.task.heldout)
    circuits = [told.circuit, other.circuit]
    data = comparison_data(["<b>a</b>", "b"], circuits, found)
    page = opened(comparison_page(["<b>a</b>", "b"], circuits, [4, 4], data), viewport={"width": 390, "height": 800})
    assert page.locator("svg circle").count() == 22
    assert "<b>a</b>" in page.locator("table").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert json.loads(page.locator("#data").text_content()) == data
