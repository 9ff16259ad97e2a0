"""The saved object and its edges."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit.ablated.nodes import NodeIndex
from circuit.graph.checks import check_model
from circuit.graph.digraph import to_networkx
from circuit.graph.edges import count_edges, count_embedding_edges, count_unembedding_edges, edges_between
from circuit.graph.record import Circuit, Node, fingerprint
from circuit.inspect.running import CircuitModel
from circuit.pruning import find_circuit
from circuit.search.config import PruneConfig
from circuit.tasks import PairBatch
from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer


@pytest.fixture(scope="module")
def found(planted: Any) -> Circuit:
    # a large circuit, so that round trips and edges have something to get wrong
    return find_circuit(planted.model, planted.task, planted.means, PruneConfig(steps=2, eliminate=False))


def brute_force_edges(model: SparseTransformer, kept: dict[str, torch.Tensor]) -> set[tuple[str, int, str, int, float]]:
    edges: set[tuple[str, int, str, int, float]] = set()
    D = model.config.d_attn
    for i, layer in enumerate(model.layers):
        matrices = [
            ("attn.in", "attn.q", layer.attn.qkv.weight[:D]),
            ("attn.in", "attn.k", layer.attn.qkv.weight[D : 2 * D]),
            ("attn.in", "attn.v", layer.attn.qkv.weight[2 * D :]),
            ("attn.v", "attn.out", layer.attn.out.weight),
            ("mlp.in", "mlp.act", layer.mlp.up.weight),
            ("mlp.act", "mlp.out", layer.mlp.down.weight),
        ]
        for source, target, weight in matrices:
            a, b = f"layers.{i}.{source}", f"layers.{i}.{target}"
            for s, t in itertools.product(kept[a].tolist(), kept[b].tolist()):
                if weight[t, s] != 0:
                    edges.add((a, s, b, t, weight[t, s].item()))
    return edges


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_edges_equal_a_loop_over_pairs_of_kept_nodes(planted: Any, share: float) -> None:
    index = NodeIndex(planted.model)
    keep = torch.rand(index.total, generator=torch.Generator().manual_seed(1)) < share
    kept = index.channels(keep)
    edges = edges_between(planted.model, kept)
    got = {(e.source.site, e.source.channel, e.target.site, e.target.channel, e.weight) for e in edges}
    assert got == brute_force_edges(planted.model, kept)
    assert len(got) == len(edges) == count_edges(planted.model, kept)
    assert {e.matrix for e in edges} <= {"qkv", "out", "up", "down"}


def test_edges_of_a_model_with_positions_beside_the_stream_and_few_heads() -> None:
    torch.manual_seed(0)
    options = {"n_head": 3, "positions": "concatenated", "d_position": 4}
    model = SparseTransformer(ModelConfig(vocab_size=12, context=24, n_layer=2, d_model=16, d_head=4, **options))
    index = NodeIndex(model)
    kept = index.channels(torch.rand(index.total, generator=torch.Generator().manual_seed(1)) < 0.5)
    edges = edges_between(model, kept)
    got = {(e.source.site, e.source.channel, e.target.site, e.target.channel, e.weight) for e in edges}
    assert got == brute_force_edges(model, kept)
    data = prompts_of_six()
    inputs = [kept[site] for site in kept if site.endswith(".in")]
    stream = [channel for channel in torch.cat(inputs).unique().tolist() if channel < 16]
    assert count_embedding_edges(model, kept, data) == len(stream) * len(data.tokens.unique())


def prompts_of_six() -> PairBatch:
    tokens = torch.randint(0, 12, (4, 6), generator=torch.Generator().manual_seed(0))
    answers = torch.tensor([1, 2, 1, 2])
    return PairBatch(tokens, torch.full((4,), 6), answers, answers.flip(0))


def test_embedding_and_unembedding_edges_are_counted_apart(planted: Any) -> None:
    model, data = planted.model, planted.task.train
    kept = NodeIndex(model).channels(NodeIndex(model).flat(planted.nodes))
    used = {int(t) for row, n in zip(data.tokens, data.length, strict=True) for t in row[:n]}
    read = {0, 1, 2, 5}  # channels of the planted attn.in and final.in nodes
    wanted = sum(model.embedding[token, channel].item() != 0 for token in used for channel in read)
    assert count_embedding_edges(model, kept, data) == wanted > 0
    assert count_unembedding_edges(model, kept, data) == 2


def test_round_trip_gives_an_equal_circuit_and_the_same_loss(planted: Any, found: Circuit, tmp_path: Path) -> None:
    path = str(tmp_path / "circuit.json")
    found.save(path)
    loaded = Circuit.load(path)
    assert loaded == found
    assert loaded.n_nodes > 8
    score = CircuitModel(planted.model, loaded).score(planted.task.heldout)
    assert score.loss == pytest.approx(found.heldout_loss, rel=1e-5)
    assert score.accuracy == found.heldout_accuracy
    assert CircuitModel(planted.model, loaded).score(planted.task.train).loss == pytest.approx(found.loss, rel=1e-5)


def test_edge_circuit_gives_the_same_loss_after_a_round_trip(planted: Any, tmp_path: Path) -> None:
    # half of the weights between the nodes of a large circuit
    config = PruneConfig(steps=2, eliminate=False)
    nodes = find_circuit(planted.model, planted.task, planted.means, config)
    circuit = find_circuit(planted.model, planted.task, planted.means, PruneConfig(steps=2), method="edge")
    some = {"edges": nodes.edges[::2], "n_edges": len(nodes.edges[::2]), "scale": nodes.scale, "shift": nodes.shift}
    circuit = circuit.model_copy(update={"nodes": nodes.nodes, "n_nodes": nodes.n_nodes, **some})
    path = str(tmp_path / "circuit.json")
    circuit.save(path)
    loaded = Circuit.load(path)
    assert loaded == circuit
    assert loaded.method == "edge"
    got = CircuitModel(planted.model, loaded).score(planted.task.train).loss
    assert got == CircuitModel(planted.model, circuit).score(planted.task.train).loss
    assert got != CircuitModel(planted.model, nodes).score(planted.task.train).loss


def test_edge_circuit_scores_as_it_was_found(planted: Any) -> None:
    circuit = find_circuit(planted.model, planted.task, planted.means, PruneConfig(steps=20), method="edge")
    score = CircuitModel(planted.model, Circuit.from_json(circuit.to_json())).score(planted.task.heldout)
    assert score.loss == pytest.approx(circuit.heldout_loss, abs=1e-7)


def test_another_model_is_refused(planted: Any, found: Circuit) -> None:
    other = SparseTransformer(planted.model.config)
    other.load_state_dict(planted.model.state_dict())
    assert fingerprint(other) == found.model
    with torch.no_grad():
        other.layers[0].mlp.up.bias[3] += 1e-6
    with pytest.raises(InputError, match="is of model"):
        CircuitModel(other, found).score(planted.task.train)


def test_truncated_foreign_and_inconsistent_json_are_refused(found: Circuit, tmp_path: Path) -> None:
    text = found.to_json()
    broken = [
        text[: len(text) // 2],
        "",
        "[]",
        '{"task": "x"}',
    ]
    broken.append(text.replace(f'"n_nodes":{found.n_nodes}', f'"n_nodes":{found.n_nodes + 1}'))
    for content in broken:
        assert content != text
        path = tmp_path / "circuit.json"
        path.write_text(content)
        with pytest.raises(InputError, match="not a saved circuit") as error:
            Circuit.load(str(path))
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
    with pytest.raises(InputError):
        Circuit.load(str(tmp_path / "missing.json"))


def changed_json(circuit: Circuit, **fields: Any) -> str:
    return json.dumps(json.loads(circuit.to_json()) | fields)


def test_a_file_that_contradicts_itself_is_refused(found: Circuit) -> None:
    content = json.loads(found.to_json())
    nodes, edges, means = content["nodes"], content["edges"], content["means"]
    site = next(iter(nodes))
    lost = {name: channels for name, channels in nodes.items() if name != edges[0][3][0]}
    broken = {
        "has no mean": {"nodes": nodes | {site: [*nodes[site][:-1], 9999]}},
        "has no mean ": {"nodes": nodes | {site: [-1, *nodes[site][1:]]}},
        "has no mean  ": {"means": {name: values for name, values in means.items() if name != site}},
        "is not between two of the nodes": {"nodes": lost, "n_nodes": sum(map(len, lost.values()))},
        "is there twice": {"edges": [edges[0], *edges], "n_edges": len(edges) + 1},
        "is there twice ": {"nodes": nodes | {site: [*nodes[site], nodes[site][0]]}, "n_nodes": found.n_nodes + 1},
        "scale -1; allowed": {"scale": -1.0},
    }
    for words, fields in broken.items():
        with pytest.raises(InputError, match=f"file: not a saved circuit .*{words.strip()}"):
            Circuit.from_json(changed_json(found, **fields), "file")
    del content["schema_version"]
    with pytest.raises(InputError, match=r"file: not a saved circuit \(schema_version is missing"):
        Circuit.from_json(json.dumps(content), "file")


def test_a_file_that_contradicts_its_model_is_not_run(planted: Any, found: Circuit) -> None:
    content = json.loads(found.to_json())
    edges, means = content["edges"], content["means"]
    heavier = [*edges[0][:4], 99.0]
    site, values = next(iter(means.items()))
    broken = {
        "edge .* of weight 99 in": {"edges": [heavier, *edges[1:]]},
        "edge .* is lacking": {"edges": edges[1:], "n_edges": len(edges) - 1},
        f"{len(values) + 1} means of {site}; allowed: {len(values)}": {"means": means | {site: [*values, 0.0]}},
        "1 means of layers.9.attn.q; allowed: 0": {"means": means | {"layers.9.attn.q": [0.0]}},
    }
    for words, fields in broken.items():
        circuit = Circuit.from_json(changed_json(found, **fields))
        with pytest.raises(InputError, match=f"circuit of {found.task}: not as its model has it: {words}"):
            check_model(circuit, planted.model)
    pruned = Circuit.from_json(changed_json(found, method="edge", edges=edges[1:], n_edges=len(edges) - 1))
    check_model(pruned, planted.model)


def test_another_version_is_refused_in_one_line(found: Circuit, tmp_path: Path) -> None:
    for version in ("2", "4", '"x"'):
        path = tmp_path / "circuit.json"
        path.write_text(found.to_json().replace('"schema_version":3', f'"schema_version":{version}'))
        with pytest.raises(InputError) as error:
            Circuit.load(str(path))
        assert str(error.value).startswith(f"{path}: schema_version ")
        assert str(error.value).endswith("allowed: 3; find the circuit anew")


def test_every_field_of_the_json_is_documented(found: Circuit) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "circuit_json.md").read_text()
    own, proofs = (
        [line.split(" | ")[0].strip("| `") for line in part.splitlines() if line.startswith("| `")]
        for part in guide.split("## Proofs")
    )
    assert own == list(json.loads(found.to_json()))
    assert proofs == list(json.loads(found.to_json())["proofs"])
    assert f"version {json.loads(found.to_json())['schema_version']}" in guide


def test_networkx_graph_has_all_nodes_and_edges(found: Circuit) -> None:
    graph = to_networkx(found)
    assert graph.number_of_nodes() == found.n_nodes
    assert graph.number_of_edges() == found.n_edges
    edge = found.edges[0]
    assert graph.edges[edge.source, edge.target] == {"matrix": edge.matrix, "layer": edge.layer, "weight": edge.weight}
    assert graph.nodes[Node(*edge.source)] == {"site": edge.source.site, "channel": edge.source.channel}
