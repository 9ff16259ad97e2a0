"""Proofs that can fail: planted circuits that pass each of them, and planted ones that fail it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from toys import random_model, random_nodes, random_pairs

from circuit.ablated.ablation import Means, mean_activations
from circuit.ablated.batches import all_batches
from circuit.graph.edges import edges_between
from circuit.graph.evidence import NO_PROOFS
from circuit.graph.record import Circuit, decimal_means, fingerprint
from circuit.proofs.adversary import attack
from circuit.proofs.agreement import agreement, inside
from circuit.proofs.backups import backups
from circuit.proofs.kept import Ablated, CircuitParts
from circuit.proofs.necessity import necessity
from circuit.proofs.nonsense import control_edges, nonsense, nonsense_edges, shuffled_weights
from circuit.proofs.subsets import PROBABILITIES, draws, in_subsets, losses_beside
from circuit.proofs.verdicts import verdicts
from circuit.pruning import find_circuit, find_circuits
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.tasks import PairBatch, TaskData
from sparse_model.model.transformer import SparseTransformer

TEXT = torch.randint(0, 10, (64, 24), generator=torch.Generator().manual_seed(5))
D, QUESTION, ANSWERS, SIGN, MARK, ASK, READ = 16, 4, (10, 11), 0, 1, 2, 5  # of the planted model, see conftest.py


def circuit_of(
    model: SparseTransformer, means: Means, nodes: dict[str, tuple[int, ...]], data: PairBatch, every: int = 1
) -> Circuit:
    """A record of given nodes, with every so many of their edges, calibrated on the data."""
    judge = Judge(model, means, data)
    keep = judge.index.flat(nodes)
    edges = tuple(edges_between(model, judge.index.channels(keep)))[::every]
    loss, fit = judge.calibrated(keep)
    figures = ("heldout_loss", "heldout_accuracy", "uncalibrated_loss", "unpruned_loss", "seconds")
    counts = {"n_nodes": int(keep.sum()), "n_edges": len(edges), "n_embedding_edges": 0, "n_unembedding_edges": 0}
    return Circuit.model_validate(
        {
            **dict.fromkeys(figures, 0.1),
            **counts,
            "loss": loss,
            "target_loss": 0.15,
            "task": "planted",
            "model": fingerprint(model),
            "method": "node" if every == 1 else "edge",
            "status": "ok",
            "nodes": nodes,
            "edges": edges,
            "scale": fit.scale,
            "shift": fit.shift,
            "means": decimal_means(means),
            "proofs": NO_PROOFS,
            "summary": "",
        }
    )


def changed(planted: Any, change: Any) -> tuple[SparseTransformer, Means]:
    """The planted model with something else planted, and its means."""
    model = copy.deepcopy(planted.model)
    with torch.no_grad():
        change(model)
    return model, mean_activations(model, [TEXT])


def cancelling(model: SparseTransformer) -> None:
    """Two neurons that read the answer and write it back, twenty times as large, with opposite signs."""
    mlp = model.layers[1].mlp
    mlp.up.weight[[3, 4]] = 0
    mlp.up.bias[[3, 4]] = 0
    mlp.up.weight[[3, 4], READ] = 3.0
    mlp.down.weight[:, [3, 4]] = 0
    mlp.down.weight[READ, 3], mlp.down.weight[READ, 4] = 20.0, -20.0


def parroting(train: PairBatch) -> Any:
    """A change after which the answer's sign decides between the tokens of nonsense as well."""

    def change(model: SparseTransformer) -> None:
        for seed in range(3):  # the median of five; one token may stand for both answers in others
            data = nonsense(train, TEXT, len(model.unembedding), seed)
            for answer in ANSWERS:
                model.unembedding[data.right[train.right == answer][0]] = model.unembedding[answer]

    return change


def backup(model: SparseTransformer) -> None:
    """The same task once more, in residual channels and a head of its own."""
    sign, mark, ask, read = 6, 7, 8, 9
    for layer in model.layers:
        for weight in (layer.attn.out, layer.mlp.down):
            weight.weight[[sign, mark, ask, read]] = 0
            weight.bias[[sign, mark, ask, read]] = 0
    model.embedding[:, [sign, mark, ask]] = model.embedding[:, [SIGN, MARK, ASK]]
    model.embedding[:, read] = 0
    model.unembedding[list(ANSWERS), read] = model.unembedding[list(ANSWERS), READ]
    attention = model.layers[1].attn
    for start in (0, D, 2 * D):
        attention.qkv.weight[start + 4 : start + 8] = 0
        attention.qkv.bias[start + 4 : start + 8] = 0
    attention.out.weight[:, 4:8] = 0
    attention.qkv.weight[4, ask] = attention.qkv.weight[D + 4, mark] = 6.0
    attention.qkv.weight[2 * D + 5, sign] = 3.0
    attention.out.weight[read, 5] = 3.0


def planted_prompts() -> PairBatch:
    """Ends at the question, as every prompt of the planted task does."""
    tokens = torch.cat([TEXT[:, :10], torch.full((len(TEXT), 1), QUESTION)], 1)
    ones = torch.ones(len(TEXT), dtype=torch.long)
    return PairBatch(tokens, 11 * ones, ANSWERS[0] * ones, ANSWERS[1] * ones)


def offset(model: SparseTransformer) -> None:
    """A channel that is on at the question alone, and raises one answer there by as much as a bias lowers it."""
    backup(model)
    for layer in model.layers:
        for weight in (layer.attn.out, layer.mlp.down):
            weight.weight[10] = 0
            weight.bias[10] = 0
    model.embedding[:, 10] = 0
    model.embedding[QUESTION, 10] = 1.0
    model.unembedding[:, 10] = 0
    model.unembedding[ANSWERS[0], 10] = 300.0
    prompts = planted_prompts()
    last = model.final(prompts.tokens)[torch.arange(len(prompts.length)), prompts.length - 1]
    model.unembedding_bias[ANSWERS[0]] = -300.0 * last[:, 10].mean()


def batches(data: PairBatch) -> Any:
    return all_batches(data, torch.device("cpu"))


def test_an_ablated_circuit_leaves_chance_and_one_with_a_backup_does_not(planted: Any) -> None:
    train, heldout = (batches(data) for data in (planted.task.train, planted.task.heldout))
    alone = CircuitParts(planted.model, circuit_of(planted.model, planted.means, planted.nodes, planted.task.train))
    needed = necessity(alone, train, heldout)
    assert needed.calibrated > 0.66
    assert 0.3 < needed.accuracy < 0.7
    model, means = changed(planted, backup)
    spare = CircuitParts(model, circuit_of(model, means, planted.nodes, planted.task.train))
    assert necessity(spare, train, heldout).calibrated < 0.1


def test_an_offset_ruins_the_raw_loss_alone(planted: Any) -> None:
    model, means = changed(planted, offset)
    nodes = planted.nodes | {"final.in": (*planted.nodes["final.in"], 10)}
    kept = CircuitParts(model, circuit_of(model, means, nodes, planted.task.train))
    found = necessity(kept, batches(planted.task.train), batches(planted.task.heldout))
    assert found.raw > 0.69
    assert found.calibrated < 0.2
    assert found.accuracy > 0.9


@pytest.mark.parametrize("every", [1, 3])
def test_what_is_left_alone_and_what_is_ablated_as_the_whole_model_by_hand_has_it(every: int) -> None:
    """Against gates over all nodes and weights, of nodes and of edges alike."""
    model, data = random_model("dense"), random_pairs()
    means = mean_activations(model, [torch.randint(0, 30, (8, 16))])
    nodes = {site: tuple(channels.tolist()) for site, channels in random_nodes(model, 0.4).items() if len(channels)}
    kept = CircuitParts(model, circuit_of(model, means, nodes, data, every))
    assert (len(kept.others) > int((~kept.nodes).sum())) == (every > 1), "weights that are no edges are others too"
    alone = draws(kept, 5, 0)
    whole, (batch, *_) = kept.whole(), batches(data)
    for one in alone:
        by_gates = whole.margins(batch, kept.gates(whole, one[None].float()))
        torch.testing.assert_close(kept.margins(kept.beside(one), [batch]), by_gates, rtol=1e-4, atol=1e-4)
    everything = torch.ones(len(kept.others), dtype=torch.bool)
    intact = kept.margins(Ablated(torch.ones_like(kept.nodes), None), [batch])
    torch.testing.assert_close(kept.margins(kept.beside(everything), [batch]), intact, rtol=1e-4, atol=1e-4)
    without = kept.ablated()
    assert bool((without.nodes & kept.nodes).any()) == (every > 1)
    assert not torch.allclose(kept.margins(without, [batch]), intact, atol=1e-3)


def test_draws_ablate_as_many_as_they_say(planted: Any) -> None:
    kept = CircuitParts(planted.model, circuit_of(planted.model, planted.means, planted.nodes, planted.task.train))
    alone = draws(kept, 20, 3)
    assert alone.shape == (20, len(kept.others))
    shares = 1 - alone.float().mean(1).view(4, len(PROBABILITIES))
    torch.testing.assert_close(shares.mean(0), torch.tensor(PROBABILITIES), rtol=0, atol=0.05)
    assert torch.equal(alone, draws(kept, 20, 3))


def test_a_pair_that_cancels_passes_while_all_is_ablated_and_fails_in_subsets_and_before_the_adversary(
    planted: Any,
) -> None:
    heldout = batches(planted.task.heldout)
    model, means = changed(planted, cancelling)
    for sound, (base, base_means) in ((True, (planted.model, planted.means)), (False, (model, means))):
        kept = CircuitParts(base, circuit_of(base, base_means, planted.nodes, planted.task.train))
        none_alone = torch.zeros(1, len(kept.others), dtype=torch.bool)
        assert losses_beside(kept, none_alone, heldout)[0] < 0.15
        drawn = in_subsets(kept, heldout, 20, 0)
        on = batches(planted.task.train), heldout
        worst = attack(kept, planted.task.train, on, drawn, seed=0, starts=6, steps=30)
        assert worst.loss >= drawn.worst
        assert (drawn.worst < 0.3) == sound
        assert (worst.loss < 0.693) == sound


def test_the_adversary_finds_a_pair_that_random_subsets_miss(planted: Any) -> None:
    model, means = changed(planted, cancelling)
    kept = CircuitParts(model, circuit_of(model, means, planted.nodes, planted.task.train))
    heldout = batches(planted.task.heldout)
    harmless = in_subsets(kept, heldout, 1, 0)  # one draw that ablates all
    assert harmless.worst < 0.15
    on = batches(planted.task.train), heldout
    worst = attack(kept, planted.task.train, on, harmless, seed=1, starts=6, steps=30)
    assert worst.loss > 2


def test_nonsense_is_consistent_of_like_frequency_and_no_answer_of_the_task(planted: Any) -> None:
    text = torch.randint(0, 12, (200, 24), generator=torch.Generator().manual_seed(0)) ** 2 % 40
    data = nonsense(planted.task.train, text, 40, seed=1)
    assert torch.equal(data.tokens, planted.task.train.tokens)
    pairs = set(zip(planted.task.train.right.tolist(), data.right.tolist(), strict=True))
    pairs |= set(zip(planted.task.train.wrong.tolist(), data.wrong.tolist(), strict=True))
    assert len(pairs) == 2
    assert not {new for _, new in pairs} & set(ANSWERS)
    other = nonsense(planted.task.train, text, 40, seed=2)
    assert not torch.equal(other.right, data.right)


def test_a_circuit_that_answers_nonsense_as_well_fails_and_the_planted_one_passes(planted: Any) -> None:
    config = PruneConfig(steps=40)
    for sound, (model, means) in (
        (True, (planted.model, planted.means)),
        (False, changed(planted, parroting(planted.task.train))),
    ):
        circuit = circuit_of(model, means, planted.nodes, planted.task.train)
        found = nonsense_edges(Judge(model, means, planted.task.train), config, "node", TEXT)
        proofs = NO_PROOFS.model_copy(update={"nonsense_edges": tuple(found)})
        (verdict,) = (v for v in verdicts(circuit.model_copy(update={"proofs": proofs})) if v.proof == "nonsense")
        assert len(found) == 5
        assert verdict.passed == sound, found


def test_weights_are_shuffled_within_each_matrix(planted: Any) -> None:
    other = shuffled_weights(planted.model, 0)
    for (name, one), (_, two) in zip(planted.model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, two.flatten().sort().values), name
        if one.dim() >= 2 and int(one.count_nonzero()) > 3:
            assert not torch.equal(one, two), name
    assert torch.equal(other.embedding, shuffled_weights(planted.model, 0).embedding)


@pytest.mark.parametrize("method", ["node", "edge", "faithful"])
def test_the_search_finds_the_planted_circuit_and_none_in_shuffled_weights(planted: Any, method: Any) -> None:
    config = PruneConfig(steps=40)
    judge = Judge(planted.model, planted.means, planted.task.train)
    assert control_edges(judge, config, method) == 4, "of the task itself, as a control that must not pass would"
    model = shuffled_weights(planted.model, 0)
    lost = Judge(model, mean_activations(model, [TEXT]), planted.task.train)
    assert control_edges(lost, config, method) is None


def test_backups_are_counted_until_none_is_left(planted: Any) -> None:
    config = PruneConfig(steps=40)
    kept = CircuitParts(planted.model, circuit_of(planted.model, planted.means, planted.nodes, planted.task.train))
    assert backups(Judge(planted.model, planted.means, planted.task.train), kept, config, "node") == []
    model, means = changed(planted, backup)
    kept = CircuitParts(model, circuit_of(model, means, planted.nodes, planted.task.train))
    assert backups(Judge(model, means, planted.task.train), kept, config, "node") == [4]


def test_agreement_of_the_planted_circuit_and_not_of_one_that_guesses(planted: Any) -> None:
    data = batches(planted.task.heldout)
    kept = CircuitParts(planted.model, circuit_of(planted.model, planted.means, planted.nodes, planted.task.train))
    found = agreement(kept, data)
    assert (found.alike, found.wrong, found.alike_wrong) == (1.0, 0, None)
    assert found.divergence < 0.1
    within = inside(kept, data)
    assert set(within.heads) == {"layers.1.attn.head.0"}
    assert len(within.nodes) == sum(map(len, planted.nodes.values()))
    assert min(within.nodes.values()) > 0.9
    assert min(within.heads.values()) > 0.9
    lame = planted.nodes | {"layers.1.attn.q": ()}
    guess = CircuitParts(planted.model, circuit_of(planted.model, planted.means, lame, planted.task.train))
    assert agreement(guess, data).alike < 0.8
    assert min(inside(guess, data).heads.values()) < 0.6


def test_agreement_where_the_model_is_wrong(planted: Any) -> None:
    """With answers exchanged the model is wrong throughout, and the circuit with it."""
    data = planted.task.heldout
    turned = PairBatch(data.tokens, data.length, right=data.wrong, wrong=data.right)
    kept = CircuitParts(planted.model, circuit_of(planted.model, planted.means, planted.nodes, planted.task.train))
    found = agreement(kept, batches(turned))
    assert (found.alike, found.alike_wrong, found.wrong) == (1.0, 1.0, len(data.right))


def test_a_search_against_subsets_takes_in_the_neuron_that_makes_up_for_another(planted: Any) -> None:
    model, means = changed(planted, cancelling)
    config = PruneConfig(steps=60)
    plain = find_circuit(model, planted.task, means, config)
    assert plain.nodes == planted.nodes
    assert (plain.proofs.subset_worst_loss or 0) > 1
    assert "fails subsets" in plain.summary
    found = find_circuit(model, planted.task, means, config.against("subsets"))
    assert (found.method, found.status) == ("faithful", "ok")
    assert 3 in found.nodes["layers.1.mlp.act"], "neuron 4 alone turns the answer round; beside it neuron 3 cancels it"
    assert (found.proofs.subset_worst_loss or 9) < 0.3
    assert found.loss <= 0.15


def test_faithful_circuits_of_several_targets_do_not_grow(planted: Any) -> None:
    config = PruneConfig(steps=40, ablation="subsets", edges=False)
    found = find_circuits(planted.model, planted.task, planted.means, config, (0.3, 0.15), ("faithful",))
    assert [circuit.status for circuit in found] == ["ok", "ok"]
    assert found[0].n_edges <= found[1].n_edges == 4
    assert config.methods("any") == ("node", "faithful")
    assert config.model_copy(update={"faithful_tasks": ("other",)}).methods("any") == ("node",)


def test_the_largest_seed_works_in_every_part(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuit.proofs.nonsense.PAIRS_OF_TOKENS", 2)  # the second seed is the first after the largest
    config = PruneConfig(steps=10, seed=2**64 - 1, restarts=2, tuning_trials=1, stability=1, ablation="subsets")
    data = TaskData("planted", planted.task.train.first(32), planted.task.heldout.first(32))
    found = find_circuit(planted.model, data, planted.means, config, text=TEXT, proofs="full")
    assert (found.status, found.proofs.level) == ("ok", "full")
    assert found.proofs.stability is not None
