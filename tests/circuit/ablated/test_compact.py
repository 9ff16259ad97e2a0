"""The compact forward pass against the model itself with its sites replaced."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import VARIANTS, random_model, random_nodes, random_pairs, zero_means

from circuit.ablated.ablation import Means, mean_activations
from circuit.ablated.batches import all_batches, pair_batch
from circuit.ablated.compact import AblatedModel, Gates
from circuit.search.branches import Branches
from circuit.search.evaluation import Judge
from circuit.search.parts import Parts
from circuit.tasks import PairBatch
from sparse_model.model.transformer import SparseTransformer


def reference_margins(model: SparseTransformer, means: Means, gates: dict[str, Tensor], data: PairBatch) -> Tensor:
    """One prompt at a time, without padding, through the model's own forward pass."""
    margins = []
    for row in range(len(data.length)):
        tokens = data.tokens[row : row + 1, : data.length[row]]
        logits = model(tokens, lambda name, x: means[name] + gates[name] * (x - means[name]))[0, -1]
        margins.append(logits[data.right[row]] - logits[data.wrong[row]])
    return torch.stack(margins)


def all_margins(model: AblatedModel, data: PairBatch, gates: dict[str, Tensor] | None = None) -> Tensor:
    rows = torch.arange(data.n_pairs)
    return model.margins(pair_batch(data, rows, torch.device("cpu")), Gates(gates or {}))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weight_fraction", [1.0, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.2, 0.7, 1.0])
def test_equals_the_model_with_its_sites_replaced(variant: str, weight_fraction: float, share: float) -> None:
    model, data = random_model(variant, weight_fraction), random_pairs()
    means = mean_activations(model, [torch.randint(0, 30, (8, 16))])
    kept = random_nodes(model, share)
    gates = {name: torch.zeros_like(means[name]).index_fill(0, kept[name], 1.0) for name in means}
    with torch.no_grad():
        expected = reference_margins(model, means, gates, data)
        actual = all_margins(AblatedModel(model, means, kept), data)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gates_and_their_gradients_equal_those_of_the_model(variant: str) -> None:
    model, data = random_model(variant, 0.3), random_pairs()
    means = mean_activations(model, [torch.randint(0, 30, (8, 16))])
    kept = random_nodes(model, 0.4)
    inside = {name: torch.zeros_like(means[name]).index_fill(0, kept[name], 1.0) for name in means}
    torch.manual_seed(3)
    gates = {name: (torch.rand_like(mean) * inside[name]).requires_grad_() for name, mean in means.items()}
    compact = all_margins(AblatedModel(model, means, kept), data, gates)
    reference = reference_margins(model, means, gates, data)
    torch.testing.assert_close(compact, reference, rtol=1e-5, atol=1e-5)

    weights = torch.randn(len(reference))
    wanted = torch.autograd.grad((reference * weights).sum(), list(gates.values()))
    got = torch.autograd.grad((compact * weights).sum(), list(gates.values()), materialize_grads=True)
    for name, a, b in zip(gates, wanted, got, strict=True):
        torch.testing.assert_close(b, a * inside[name], rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_batches_hold_every_prompt_once_and_no_longer_than_needed() -> None:
    model, data = random_model("plain"), random_pairs(40)
    compact = AblatedModel(model, zero_means(model), random_nodes(model, 1.0))
    batches = all_batches(data, torch.device("cpu"))
    assert all(batch.tokens.shape[1] == int(batch.last.max()) + 1 for batch in batches)
    with torch.no_grad():
        together = torch.cat([compact.margins(batch) for batch in batches])
        expected = all_margins(compact, data)
    torch.testing.assert_close(together.sort().values, expected.sort().values, rtol=1e-5, atol=1e-5)


def random_edges(model: AblatedModel, share: float) -> dict[str, Tensor]:
    """Some of the weights between kept nodes, by target site."""
    generator = torch.Generator().manual_seed(4)
    edges = {}
    for between in model.projections():
        target, source = between.weight.nonzero().unbind(1)
        pairs = torch.stack([between.outputs[target], between.inputs[source]], 1)
        edges[between.target] = pairs[torch.rand(len(pairs), generator=generator) < share]
    return edges


def without_edges(model: SparseTransformer, means: Means, kept: dict[str, Tensor], edges: dict[str, Tensor]) -> Any:
    """A copy whose weights between kept nodes that are not among the edges became part of the target's bias."""
    edited, D = copy.deepcopy(model), model.config.d_attn
    with torch.no_grad():
        for i, layer in enumerate(edited.layers):
            for source, target, linear, first in (
                ("attn.in", "attn.q", layer.attn.qkv, 0),
                ("attn.in", "attn.k", layer.attn.qkv, D),
                ("attn.in", "attn.v", layer.attn.qkv, 2 * D),
                ("attn.v", "attn.out", layer.attn.out, 0),
                ("mlp.in", "mlp.act", layer.mlp.up, 0),
                ("mlp.act", "mlp.out", layer.mlp.down, 0),
            ):
                a, b = f"layers.{i}.{source}", f"layers.{i}.{target}"
                if linear.bias is None:
                    linear.bias = torch.nn.Parameter(torch.zeros(len(linear.weight)))
                stays = set(map(tuple, edges.get(b, torch.zeros(0, 2)).tolist()))
                for t, s in itertools.product(kept[b].tolist(), kept[a].tolist()):
                    if (t, s) not in stays:
                        linear.bias[first + t] += linear.weight[first + t, s] * means[a][s]
                        linear.weight[first + t, s] = 0
    return edited


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_removed_edges_carry_the_mean_of_their_source(variant: str, share: float) -> None:
    model, data = random_model(variant), random_pairs()
    means = mean_activations(model, [torch.randint(0, 30, (8, 16))])
    kept = random_nodes(model, 0.5)
    nodes = {name: torch.zeros_like(means[name]).index_fill(0, kept[name], 1.0) for name in means}
    edges = random_edges(AblatedModel(model, means, kept), share)
    with torch.no_grad():
        expected = reference_margins(without_edges(model, means, kept, edges), means, nodes, data)
        actual = all_margins(AblatedModel(model, means, kept, edges), data)
        whole = all_margins(AblatedModel(model, means, kept), data)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(actual, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("memory", [2**30, 83_000, 1])
def test_candidates_that_branch_off_are_those_judged_alone(
    variant: str, edges: bool, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several at once, and one after the other, with residual streams kept before all sublayers, some, or the first."""
    monkeypatch.setattr("circuit.search.branches.STREAM_BYTES", memory)
    model = random_model(variant)
    means = mean_activations(model, [torch.randint(0, 30, (8, 16))])
    judge = Judge(model, means, random_pairs())
    generator = torch.Generator().manual_seed(6)
    parts = Parts(model, torch.rand(judge.index.total, generator=generator) < 0.5, edges)
    branches, keep = Branches(judge, parts), parts.everything()
    late = parts.stages >= 3
    drop = torch.rand(3, len(keep), generator=generator) < torch.tensor([[0.05], [0.3], [1.0]])
    drop[0] &= late
    candidates = parts.closed(keep & ~(drop & parts.removable(keep)))
    trunk = branches.trunk(keep)
    branch = branches.branch(trunk, candidates[0])
    smaller = parts.closed(candidates[0] & ~(drop[1] & parts.removable(keep)))
    twig = branches.branch(branch, smaller)
    every = [*candidates, candidates[0], smaller]
    alone = torch.stack([judge.margins(one[: parts.n_nodes], parts.edges(one)) for one in every])
    # rounding may let another of two nearly tied activations through AbsTopK
    found = torch.stack([branch.margins, twig.margins])
    assert float(torch.isclose(found, alone[-2:], rtol=1e-4, atol=1e-4).float().mean()) > 0.97
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    losses = branches.losses(trunk, candidates)
    torch.testing.assert_close(losses, judge.losses(alone[:3]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("edges", [False, True])
def test_changes_are_the_derivatives_of_every_margin(edges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against small steps of each gate from 1 towards 0, and whole ones where margins are linear in a gate."""
    monkeypatch.setattr("circuit.search.branches.CELLS", 3000)  # a few prompts at a time
    model = random_model("dense")
    means = mean_activations(model, [torch.randint(0, 30, (8, 16))])
    judge = Judge(model, means, random_pairs())
    parts = Parts(model, torch.rand(judge.index.total, generator=torch.Generator().manual_seed(0)) < 0.1, edges)
    keep = parts.everything()
    singles = parts.removable(keep).nonzero().squeeze(1)
    changes = Branches(judge, parts).changes(keep, singles)
    assert changes.shape == (len(singles), len(judge.sides))
    compact, values = AblatedModel(model, means, judge.index.channels(parts.nodes)), keep.float()

    def margins(gates: Tensor) -> Tensor:
        return torch.cat([compact.margins(batch, parts.gates(compact, gates)).double() for batch in judge.batches])

    for i, part in list(enumerate(singles))[::3]:
        ends = [margins(values.index_fill(0, part, 1 + change)) for change in (-0.02, 0.02)]
        torch.testing.assert_close(changes[i].double(), (ends[0] - ends[1]) / 0.04, rtol=0.05, atol=1e-4)
    first = parts.first["final.in"]
    for i, part in [(i, part) for i, part in enumerate(singles) if first <= part < parts.n_nodes]:
        gone = margins(values.index_fill(0, part, 0)) - margins(values)
        torch.testing.assert_close(changes[i].double(), gone, rtol=1e-4, atol=1e-5)
