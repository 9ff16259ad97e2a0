"""A circuit as a model: changed parts, contexts and binarisation against the model's own forward pass."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import VARIANTS, random_model, random_nodes, random_pairs

from circuit.ablated.ablation import mean_activations
from circuit.ablated.calibration import task_loss
from circuit.graph.edges import edges_between
from circuit.graph.evidence import NO_PROOFS
from circuit.graph.record import Circuit, Node, decimal_means, fingerprint
from circuit.inspect.binarise import Step, binarise, candidates
from circuit.inspect.contexts import contexts
from circuit.inspect.running import CircuitModel, changed, effects, nodes_of, part_named
from circuit.pruning import check_length, find_circuit
from circuit.search.config import PruneConfig
from circuit.tasks import PairBatch, TaskData
from sparse_model.errors import InputError
from sparse_model.model.sites import site_kind
from sparse_model.model.transformer import SparseTransformer

SCALE, SHIFT = 0.8, 0.3


def toy_circuit(model: SparseTransformer, share: float = 0.4, keep_every: int = 1) -> Circuit:
    """Random nodes of a random model, with every so many of their edges."""
    kept = random_nodes(model, share)
    edges = tuple(edges_between(model, kept)[::keep_every])
    nodes = {site: tuple(channels.tolist()) for site, channels in kept.items() if len(channels)}
    figures = (
        "target_loss",
        "loss",
        "heldout_loss",
        "heldout_accuracy",
        "uncalibrated_loss",
        "unpruned_loss",
        "seconds",
    )
    counts = {"n_nodes": sum(map(len, nodes.values())), "n_edges": len(edges)}
    return Circuit.model_validate(
        {
            **dict.fromkeys(figures, 0.5),
            **dict.fromkeys(("n_embedding_edges", "n_unembedding_edges"), 0),
            **counts,
            "task": "toy",
            "model": fingerprint(model),
            "method": "node" if keep_every == 1 else "edge",
            "status": "ok",
            "nodes": nodes,
            "edges": edges,
            "proofs": NO_PROOFS,
            "summary": "",
            "scale": SCALE,
            "shift": SHIFT,
            "means": decimal_means(mean_activations(model, [torch.randint(0, 30, (8, 16))])),
        }
    )


def reference(model: SparseTransformer, circuit: Circuit, data: PairBatch, steps: dict[Node, Any] | None = None) -> Any:
    """Calibrated margins, prompt by prompt; `steps` are functions of a node's values."""
    means = {site: torch.tensor(mean) for site, mean in circuit.means.items()}

    def at_site(name: str, x: Tensor) -> Tensor:
        out = means[name].expand_as(x).clone()
        channels = list(circuit.nodes.get(name, ()))
        out[..., channels] = x[..., channels]
        for node, step in (steps or {}).items():
            if node.site == name:
                out[..., node.channel] = step(x[..., node.channel])
        return out

    margins = []
    for row in range(len(data.length)):
        logits = model(data.tokens[row : row + 1, : data.length[row]], at_site)[0, -1]
        side = 1.0 if data.right[row] < data.wrong[row] else -1.0
        margins.append(SCALE * (logits[data.right[row]] - logits[data.wrong[row]]) + SHIFT * side)
    return torch.stack(margins).detach()


def loss(margins: Tensor) -> float:
    return float(task_loss(margins, torch.ones_like(margins)))


@pytest.fixture(scope="module")
def circuit(planted: Any) -> Circuit:
    return find_circuit(planted.model, planted.task, planted.means, PruneConfig(steps=60))


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_runs_as_the_model_with_everything_else_at_its_mean(variant: str) -> None:
    model, data = random_model(variant), random_pairs()
    running = CircuitModel(model, circuit := toy_circuit(model))
    wanted = reference(model, circuit, data)
    torch.testing.assert_close(running.margins(data), wanted, rtol=1e-4, atol=1e-5)
    assert running.score(data).loss == pytest.approx(loss(wanted), abs=1e-5)
    assert running.score(data).accuracy == pytest.approx(float((wanted > 0).float().mean()))
    one = data.tokens[:1, : data.length[0]]
    torch.testing.assert_close(running(one, data.right[:1], data.wrong[:1]), wanted[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_node_is_held_at_a_value_inside_the_circuit_and_outside(variant: str) -> None:
    model, data = random_model(variant), random_pairs(3)
    circuit = toy_circuit(model)
    before = CircuitModel(model, circuit).score(data).loss
    for kind in ("attn.in", "attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.act", "mlp.out"):
        site = f"layers.1.{kind}"
        outside = next(c for c in range(len(circuit.means[site])) if c not in circuit.nodes[site])
        inside = Node(site, circuit.nodes[site][0])
        for node, value in ((inside, 1.7), (inside, None), (Node(site, outside), -1.2)):
            held = circuit.means[site][node.channel] if value is None else value
            wanted = reference(model, circuit, data, {node: lambda x, held=held: torch.full_like(x, held)})
            effect = changed(model, circuit, data, {node.name: value})
            assert effect.after == pytest.approx(loss(wanted), abs=2e-5), node
            assert effect.before == before


@pytest.mark.parametrize("keep_every", [1, 2])
@pytest.mark.parametrize("value", [None, 1.7])
def test_an_edge_is_held_alone(keep_every: int, value: float | None) -> None:
    """As if its weight were gone and its target's bias had what the edge then carries."""
    model, data = random_model("plain", 0.5), random_pairs()
    circuit = toy_circuit(model, keep_every=keep_every)
    for matrix in ("qkv", "out", "up", "down"):
        edge = next(e for e in circuit.edges if e.matrix == matrix and e.layer == 1)
        other = copy.deepcopy(model)
        layer = other.layers[1]
        linear = {"qkv": layer.attn.qkv, "out": layer.attn.out, "up": layer.mlp.up, "down": layer.mlp.down}[matrix]
        row = edge.target.channel
        if matrix == "qkv":
            row += model.config.d_attn * "qkv".index(site_kind(edge.target.site)[-1])
        held = circuit.means[edge.source.site][edge.source.channel] if value is None else value
        with torch.no_grad():
            assert linear.weight[row, edge.source.channel] == edge.weight
            linear.weight[row, edge.source.channel] = 0
            linear.bias[row] += edge.weight * held
        left = [e for e in circuit.edges if e != edge]
        as_other = circuit.model_copy(update={"model": fingerprint(other), "edges": tuple(left)})
        wanted = CircuitModel(other, as_other).score(data).loss
        assert changed(model, circuit, data, {edge.name: value}).after == pytest.approx(wanted, abs=2e-5), edge


def test_effects_are_of_every_part_and_all_planted_ones_matter(planted: Any, circuit: Circuit) -> None:
    found = effects(planted.model, circuit, planted.task.heldout)
    assert set(found) == {part.name for part in (*nodes_of(circuit), *circuit.edges)}
    assert len(found) == 12
    assert all(effect.before == pytest.approx(circuit.heldout_loss, abs=1e-6) for effect in found.values())
    assert min(effect.after for effect in found.values()) > 0.15
    losses = [effect.after for effect in found.values()]
    assert losses == sorted(losses, reverse=True)


def test_the_model_is_compared_with_the_circuit_once_for_all_effects(
    planted: Any, circuit: Circuit, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    def counted(model: Any) -> str:
        compared.append(fingerprint(model))
        return compared[-1]

    monkeypatch.setattr("circuit.graph.checks.fingerprint", counted)
    assert len(effects(planted.model, circuit, planted.task.heldout)) == 12
    assert compared == [circuit.model]


def test_a_part_named_in_two_ways_is_refused(planted: Any, circuit: Circuit) -> None:
    with pytest.raises(InputError, match="each part once"):
        changed(planted.model, circuit, planted.task.heldout, {"final.in.5": 1, "final.in.05": 2})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(planted: Any, circuit: Circuit, value: float) -> None:
    with pytest.raises(InputError, match=f"final.in.5: value {value}; allowed: a finite number"):
        changed(planted.model, circuit, planted.task.heldout, {"final.in.5": value})


def test_a_sign_flipped_by_hand_flips_every_answer(planted: Any, circuit: Circuit) -> None:
    high, low = (changed(planted.model, circuit, planted.task.heldout, {"final.in.5": v}) for v in (3.0, -3.0))
    assert high.accuracy == low.accuracy == 0.5
    one = CircuitModel(planted.model, circuit, nodes={Node("final.in", 5): 3.0}).margins(planted.task.heldout)
    assert bool((one[::2] > 0).all())
    assert bool((one[1::2] < 0).all())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nonsense", "no node; allowed: <site>.<channel>, e.g. layers.0.attn.q.5"),
        ("layers.9.attn.q.1", "no node"),
        ("layers.1.attn.q.16", "allowed: 0 to 15"),
        ("layers.1.attn.q.-1", "allowed: 0 to 15"),
        ("layers.1.attn.in.0:layers.1.attn.q.0", "no edge of the circuit of planted; it has 4"),
    ],
)
def test_names_that_are_no_part_are_refused(planted: Any, circuit: Circuit, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        part_named(planted.model, circuit, name)
    for part in (*nodes_of(circuit), *circuit.edges):
        assert part_named(planted.model, circuit, part.name) == part


def test_another_model_and_a_circuit_without_nodes_are_refused(planted: Any) -> None:
    model = random_model("plain")
    with pytest.raises(InputError, match="is of model"):
        CircuitModel(random_model("plain", seed=1), toy_circuit(model))
    with pytest.raises(InputError, match="unsolved: there are no nodes"):
        CircuitModel(model, toy_circuit(model).model_copy(update={"status": "unsolved"}))


@pytest.mark.parametrize("variant", ["plain", "concatenated", "everything"])
def test_contexts_are_the_highest_and_lowest_places_of_the_text(variant: str) -> None:
    model = random_model(variant)
    text = torch.randint(0, 30, (40, 16), generator=torch.Generator().manual_seed(4))
    nodes = [Node("layers.0.attn.in", 3), Node("layers.1.mlp.act", 7), Node("final.in", 0)]
    found = contexts(model, nodes, text, count=3)
    for node in nodes:
        values = model.capture(text)[node.site][..., node.channel]
        assert found[node].active == pytest.approx(float((values != 0).float().mean()))
        for places, sign in ((found[node].top, 1), (found[node].bottom, -1)):
            best = (sign * values).amax(1).sort(descending=True).values[:3]
            assert [sign * place.value for place in places] == pytest.approx(best.tolist(), abs=1e-5)
            assert len({place.window for place in places}) == 3
            for place in places:
                assert values[place.window, place.position].item() == pytest.approx(place.value, abs=1e-5)


def test_a_planted_mark_is_the_top_context(planted: Any) -> None:
    text = torch.full((6, 24), 7)
    text[2, 11], text[4, 3] = 2, 3  # the marked cues
    found = contexts(planted.model, [Node("layers.1.attn.k", 0)], text, count=2)
    assert {(p.window, p.position) for p in found[Node("layers.1.attn.k", 0)].top} == {(2, 11), (4, 3)}


def test_the_first_candidate_is_the_best_two_values() -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(3)).round(decimals=1)

    def error(step: Step) -> float:
        return float((values - torch.where(values > step.threshold, step.high, step.low)).square().sum())

    tried = candidates(values)
    splits = [(values[values <= t], values[values > t]) for t in values.unique()[:-1]]
    best = min(float((a - a.mean()).square().sum() + (b - b.mean()).square().sum()) for a, b in splits)
    assert error(tried[0]) == pytest.approx(best, rel=1e-5)
    assert len(tried) > 10
    assert all(step.low < step.threshold < step.high for step in tried)
    assert candidates(torch.full((5,), 2.0)) == [Step(2.0, 2.0, 2.0)]


def test_the_planted_circuit_is_binary_and_each_step_is_put_where_it_says(planted: Any, circuit: Circuit) -> None:
    found = binarise(planted.model, circuit, planted.task)
    assert found.circuit.loss == pytest.approx(circuit.heldout_loss, abs=1e-6)
    assert list(found.steps) == nodes_of(circuit)
    assert found.together.accuracy > 0.95
    assert max(score.loss for score in found.alone.values()) < 0.3
    # the same through the model's own forward pass, calibrated by brute force on the training pairs
    steps = {n: (lambda x, s=s: torch.where(x > s.threshold, s.high, s.low)) for n, s in found.steps.items()}
    raw = [
        (reference(planted.model, circuit, data, steps) - SHIFT * sides(data)) / SCALE
        for data in (planted.task.train, planted.task.heldout)
    ]
    grid = itertools.product(torch.logspace(-1, 1.5, 60).tolist(), (-0.1, 0.0, 0.1))
    best = min(grid, key=lambda fit: loss(fit[0] * raw[0] + fit[1] * sides(planted.task.train)))
    rebuilt = loss(best[0] * raw[1] + best[1] * sides(planted.task.heldout))
    assert found.together.loss == pytest.approx(rebuilt, abs=0.02)


def sides(data: PairBatch) -> Tensor:
    return torch.where(data.right < data.wrong, 1.0, -1.0)


def test_nodes_whose_size_matters_are_not_binary() -> None:
    """The right answer is the larger of two numbers, each of them one node: two values each cannot tell."""
    model = random_model("dense")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embedding[:, 0] = torch.arange(30) % 6 + 0.5
        model.embedding[:, 1] = (torch.arange(30) // 6).float()
        model.embedding[:, 2] = 100.0  # so that the norm is the same for all
        model.unembedding[0, 0], model.unembedding[1, 1] = 100.0, 100.0
    first = model.embedding[:, 0] > model.embedding[:, 1]
    right = torch.where(first, 0, 1)
    data = PairBatch(torch.arange(30)[:, None], torch.ones(30, dtype=torch.long), right, 1 - right)
    circuit = toy_circuit(model).model_copy(
        update={"nodes": {"final.in": (0, 1)}, "n_nodes": 2, "edges": (), "n_edges": 0, "shift": 0.0}
    )
    found = binarise(model, circuit, TaskData("toy", data, data))
    assert found.circuit.accuracy == 1
    assert found.together.accuracy < 1
    assert found.together.loss > 3 * found.circuit.loss
    assert [node.channel for node in found.steps] == [0, 1]


def test_prompts_of_other_axes_and_other_models_are_refused(planted: Any, circuit: Circuit) -> None:
    running, data = CircuitModel(planted.model, circuit), planted.task.heldout
    answers = data.right[:2], data.wrong[:2]
    for tokens, words in ((data.tokens[0], r"of shape \(\d+,\); allowed: \(B, T\)"), (data.tokens[:2] + 99, "id 1")):
        with pytest.raises(InputError, match=words):
            running(tokens, *answers)
    with pytest.raises(InputError, match=r"right of shape \(1, 2\); allowed: \(2,\)"):
        running(data.tokens[:2], data.right[None, :2], data.wrong[:2])
    with pytest.raises(InputError, match="wrong: id -1; allowed: 0 to"):
        running(data.tokens[:2], data.right[:2], data.wrong[:2] * 0 - 1)
    for name in ("tokens", "right"):
        foreign = dataclasses.replace(data, **{name: getattr(data, name) + 99})
        for read in (running.score, running.margins):
            with pytest.raises(InputError, match=r"prompts: .*: id \d+; allowed: 0 to"):
                read(foreign)
        with pytest.raises(InputError, match=r"task x: .*: id \d+; allowed: 0 to"):
            check_length(planted.model, TaskData("x", foreign, data))
    known = torch.zeros(64, 24, dtype=torch.long)
    for text in (known[0], known.float(), known + 99):
        with pytest.raises(InputError, match="text"):
            check_length(planted.model, planted.task, text)
