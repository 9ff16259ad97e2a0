"""Resample ablation, stability over seeds, the verdicts, and stopping a search."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from toys import VARIANTS, random_model, random_nodes, random_pairs

from circuit.ablated.ablation import Pretraining, mean_activations
from circuit.ablated.calibration import Calibration, task_loss
from circuit.graph.edges import edge_ends
from circuit.graph.evidence import NO_PROOFS
from circuit.graph.record import Circuit
from circuit.proofs.resample import resampled_losses
from circuit.proofs.stability import mean_overlap
from circuit.proofs.verdicts import summary, verdicts
from circuit.pruning import find_circuit, find_circuits
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.parts import Parts
from circuit.search.watch import Update
from circuit.tasks import PairBatch
from sparse_model.errors import InputError

TEXT = torch.randint(0, 10, (64, 24), generator=torch.Generator().manual_seed(9))


def of_one_length(data: PairBatch) -> PairBatch:
    """Prompts cut to the shortest, so that a text of as many tokens has one stretch only."""
    shortest = int(data.length.min())
    return PairBatch(data.tokens[:, :shortest], torch.full_like(data.length, shortest), data.right, data.wrong)


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_resampling_equals_the_model_with_the_donors_activations_put_in(variant: str) -> None:
    model, data = random_model(variant), of_one_length(random_pairs())
    text = torch.randint(0, 30, (1, data.tokens.shape[1]), generator=torch.Generator().manual_seed(2))
    means = mean_activations(model, [torch.randint(0, 30, (8, 16))])
    kept = random_nodes(model, 0.4)
    donor = model.capture(text)
    inside = {n: torch.zeros_like(means[n], dtype=torch.bool).index_fill(0, kept[n], True) for n in means}
    for strength in (0.3, 1.0):
        held = {n: means[n] + strength * (donor[n] - means[n]) for n in means}
        with torch.no_grad():
            logits = model(data.tokens, lambda n, x, held=held: torch.where(inside[n], x, held[n]))[:, -1]
        margins = logits.gather(1, data.right[:, None]) - logits.gather(1, data.wrong[:, None])
        sides = torch.where(data.right < data.wrong, 1.0, -1.0)
        wanted = float(task_loss(margins[:, 0], sides, Calibration(0.7, 0.2)))
        args = (model, Pretraining(means, text), kept, None, data, Calibration(0.7, 0.2), (strength,))
        assert resampled_losses(*args)[strength] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_strength_0_it_is_mean_ablation_of_nodes_and_of_edges(variant: str) -> None:
    model, data = random_model(variant, 0.5), random_pairs()
    means = mean_activations(model, [torch.randint(0, 30, (8, 16))])
    judge = Judge(model, means, data)
    parts = Parts(model, judge.index.flat({n: c.tolist() for n, c in random_nodes(model, 0.4).items()}), edges=True)
    keep = parts.everything()
    keep[parts.n_nodes :: 3] = False
    nodes, edges = keep[: parts.n_nodes] | parts.nodes, parts.edges(keep)
    kept = judge.index.channels(nodes)
    got = resampled_losses(model, Pretraining(means, torch.zeros(1, 16).long()), kept, edges, data, strengths=(0.0,))
    assert got[0.0] == pytest.approx(judge.score(nodes, edges=edges).loss, abs=1e-5)
    assert got[0.0] != pytest.approx(judge.score(nodes).loss, abs=1e-5)


def test_a_removed_edge_passes_what_it_passes_in_the_donor() -> None:
    """With every node kept and no edge, all sublayers are the donor's; the answer's token and position are the
    prompt's, and here the donor is the prompt itself: nothing has changed."""
    model, data = random_model("plain"), of_one_length(random_pairs(1))
    data = PairBatch(data.tokens[:1].repeat(2, 1), data.length, data.right[[0, 0]], data.wrong[[0, 0]])
    means = mean_activations(model, [torch.randint(0, 30, (8, 16))])
    judge = Judge(model, means, data)
    kept = judge.index.channels(judge.everything())
    assert len(edge_ends(model, kept, judge.index.first)[0]) > 1000
    same = Pretraining(means, data.tokens[:1])
    got = resampled_losses(model, same, kept, {}, data, strengths=(0.0, 1.0))
    assert got[1.0] == pytest.approx(judge.score(judge.everything()).loss, abs=1e-5)
    assert got[0.0] != pytest.approx(got[1.0], abs=1e-3)
    assert model.layers[0].attn.qkv._forward_hooks == {}


def test_the_planted_circuit_stands_resampling_and_one_that_relies_on_a_mean_does_not(planted: Any) -> None:
    found = find_circuit(planted.model, planted.task, planted.means, PruneConfig(steps=60), text=TEXT, proofs="full")
    assert found.nodes == planted.nodes
    assert list(found.proofs.resample_losses) == [0.25, 0.5, 0.75, 1.0]
    assert max(found.proofs.resample_losses.values()) < 0.3
    # the same model, but layer 0 writes noise into the channel that the answer is read from
    relying = copy.deepcopy(planted.model)
    with torch.no_grad():
        relying.layers[0].mlp.down.weight[5] = 2 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    means = mean_activations(relying, [TEXT])
    judge = Judge(relying, means, planted.task.heldout)
    keep = judge.index.flat(planted.nodes)
    loss, fit = judge.calibrated(keep)
    args = (relying, Pretraining(means, TEXT), judge.index.channels(keep), None, planted.task.heldout, fit)
    losses = resampled_losses(*args)
    assert loss < 0.1
    assert list(losses.values()) == sorted(losses.values())
    assert losses[1.0] > 0.3


def test_text_shorter_than_a_prompt_is_refused(planted: Any) -> None:
    with pytest.raises(InputError, match="windows of 9 tokens; allowed: windows of"):
        find_circuit(planted.model, planted.task, planted.means, PruneConfig(steps=2), text=TEXT[:, :9])


def test_overlap_is_intersection_over_union_over_all_pairs() -> None:
    a, b, c = (torch.tensor(bits, dtype=torch.bool) for bits in ([1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]))
    assert mean_overlap([a, b]) == 0.5
    assert mean_overlap([a, b, c]) == pytest.approx(0.5 / 3)
    assert mean_overlap([c, c]) == 1


def test_a_planted_circuit_is_stable_and_one_of_chance_is_not(planted: Any) -> None:
    config = PruneConfig(steps=40, stability=1, max_scale=2)  # with which the second target is out of reach
    found = find_circuits(planted.model, planted.task, planted.means, config, (0.15, 1e-9))
    assert [circuit.proofs.stability for circuit in found] == [1.0, 1.0, None, None]
    loose = PruneConfig(steps=1, stability=1, eliminate=False, pairs=8)
    assert 0 < (find_circuit(planted.model, planted.task, planted.means, loose).proofs.stability or 0) < 1


@pytest.fixture(scope="module")
def proven(planted: Any) -> Circuit:
    config = PruneConfig(steps=40, stability=1)
    harder = planted.task.heldout.first(20)
    return find_circuit(planted.model, planted.task, planted.means, config, text=TEXT, harder=harder, proofs="full")


def test_the_planted_circuit_passes_every_proof(proven: Circuit) -> None:
    assert proven.summary == (
        "passes sufficiency, necessity, subsets, adversary, nonsense, shuffled weights, agreement, agreement inside, "
        "resample ablation, stability"
    )
    assert proven.proofs.level == "full"
    assert Circuit.from_json(proven.to_json()) == proven


@pytest.mark.parametrize(
    ("proof", "change"),
    [
        ("sufficiency", {"heldout_loss": 0.226}),
        ("necessity", {"necessity_calibrated_loss": 0.62}),
        ("subsets", {"subset_loss": 0.226}),
        ("subsets", {"subset_worst_loss": 0.301}),
        ("adversary", {"adversary_loss": 0.7}),
        ("nonsense", {"nonsense_edges": (None, 7, 7, 7, None)}),
        ("shuffled weights", {"shuffled_weights_edges": 7}),
        ("agreement", {"agreement": 0.94}),
        ("agreement", {"agreement_divergence": 0.151}),
        ("agreement", {"wrong_prompts": 8, "agreement_wrong": 0.49}),
        ("agreement", {"agreement_harder": 0.89}),
        ("agreement inside", {"node_correlations": {"a": 0.69}}),
        ("agreement inside", {"attention_overlaps": {"a": 0.69}}),
        ("resample ablation", {"resample_losses": {0.25: 0.1, 1.0: 0.301}}),
        ("stability", {"stability": 0.49}),
    ],
)
def test_each_verdict_turns_at_its_threshold(proven: Circuit, proof: str, change: dict[str, Any]) -> None:
    if proof != "sufficiency":
        change = {"proofs": proven.proofs.model_copy(update=change)}
    changed = proven.model_copy(update=change)
    assert [verdict.proof for verdict in verdicts(changed) if not verdict.passed] == [proof]
    assert summary(changed).endswith(f"; fails {proof}")
    assert "at least" in verdicts(changed)[1].words


def test_what_was_not_measured_is_neither_passed_nor_failed(proven: Circuit) -> None:
    unmeasured = {"resample_losses": {}, "stability": None, "adversary_loss": None, "nonsense_edges": ()}
    bare = proven.model_copy(update={"proofs": proven.proofs.model_copy(update=unmeasured)})
    assert summary(bare).endswith("; not measured: adversary, nonsense, resample ablation, stability")
    nothing = summary(proven.model_copy(update={"proofs": NO_PROOFS}))
    assert nothing.startswith("passes sufficiency; not measured: necessity, subsets, ")
    assert summary(proven.model_copy(update={"status": "unsolved"})) == ""


def test_a_large_scale_is_said_in_the_summary(proven: Circuit) -> None:
    assert summary(proven.model_copy(update={"scale": 10.0})) == summary(proven)
    large = summary(proven.model_copy(update={"scale": 55.46}))
    assert large == summary(proven) + "; logits times 55.5 (more than 10)"


@pytest.mark.parametrize("stage", ["search", "proofs", "stability"])
def test_a_search_stops_at_once_when_asked_to_and_keeps_the_circuits_it_has(planted: Any, stage: str) -> None:
    seen: list[Update] = []

    def stop(update: Update) -> bool:
        seen.append(update)
        return update.stage == stage

    config = PruneConfig(steps=20, stability=1)
    found = find_circuits(planted.model, planted.task, planted.means, config, (0.15, 1e-9), progress=stop)
    assert [update.stage for update in seen].count(stage) == 1
    if stage == "search":
        assert [circuit.status for circuit in found] == ["stopped"] * 4
        assert all(circuit.nodes == {} and circuit.n_edges == 0 for circuit in found)
    else:
        assert [circuit.status for circuit in found[:2]] == ["ok"] * 2
        assert all(circuit.nodes == planted.nodes and circuit.proofs == NO_PROOFS for circuit in found[:2])
        assert found[0].summary.startswith("passes sufficiency; not measured: necessity")
    assert Circuit.from_json(found[0].to_json()) == found[0]
    assert math.isfinite(found[0].loss)


def test_what_the_callback_raises_reaches_the_caller(planted: Any) -> None:
    def refuse(update: Update) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_circuit(planted.model, planted.task, planted.means, PruneConfig(steps=20), progress=refuse)
