"""Circuits on a GPU that is not there: the same as on the CPU, and no tensor left behind on it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pretend_gpu import pretend_gpu, waits
from torch import Tensor
from toys import VARIANTS, random_model, random_nodes, random_pairs

from circuit.ablated.ablation import Means, mean_activations
from circuit.ablated.batches import all_batches
from circuit.ablated.compact import AblatedModel, Gates
from circuit.ablated.nodes import NodeIndex
from circuit.inspect.binarise import binarise
from circuit.inspect.contexts import contexts
from circuit.inspect.running import CircuitModel, changed, effects, nodes_of
from circuit.pruning import find_circuits
from circuit.search.baselines import BASELINES, ordered, smallest_reaching
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.masks import _Learner
from circuit.tasks import TaskData
from sparse_model.model.transformer import SparseTransformer


@pytest.mark.parametrize("variant", VARIANTS)
def test_compacted_models_of_every_kind(variant: str) -> None:
    model, pairs = random_model(variant), random_pairs()
    text = torch.randint(0, 30, (8, 16), generator=torch.Generator().manual_seed(2))
    nodes = random_nodes(model, 0.5)

    def margins(model: SparseTransformer, device: torch.device) -> Tensor:
        means = mean_activations(model, [text.to(device)])
        compact = AblatedModel(model, means, {site: kept.to(device) for site, kept in nodes.items()})
        index = NodeIndex(model)
        gates = torch.linspace(0, 1, index.total).to(device).requires_grad_()
        found = [compact.margins(batch, Gates(index.split(gates))) for batch in all_batches(pairs, device)]
        (gradient,) = torch.autograd.grad(torch.cat(found).square().sum(), gates)
        return torch.cat([*found, gradient]).detach().cpu()

    ours = margins(model, torch.device("cpu"))
    with pretend_gpu() as gpu:
        assert torch.allclose(margins(copy.deepcopy(model).to(gpu), gpu), ours, rtol=1e-5, atol=1e-5)


def test_circuits_and_their_proofs(planted: Any) -> None:
    asked = PruneConfig(steps=12, stability=1, tie_qk=True)
    task = TaskData("planted", train=planted.task.train.first(16), heldout=planted.task.heldout.first(16))
    text = torch.randint(0, 10, (64, 24), generator=torch.Generator().manual_seed(5))
    ours = find_circuits(planted.model, task, planted.means, asked, (0.15,), text=text)
    with pretend_gpu() as gpu:
        model, means = on(gpu, planted)
        theirs = find_circuits(model, task, means, asked, (0.15,), text=text)
    for a, b in zip(ours, theirs, strict=True):
        assert b == a.model_copy(update={"seconds": b.seconds})


def test_a_step_of_mask_learning_waits_little(planted: Any) -> None:
    with pretend_gpu() as gpu:
        model, means = on(gpu, planted)
        learner = _Learner(model, planted.task.train, means, PruneConfig(), None)
        waits.clear()
        learner.step(0)
        learner.rescue()
        learner.retire()
        assert len(waits) <= 3  # for the loss, how many nodes are kept, and how many are left to compute
        waits.clear()
        kept = learner.index.channels(learner.tau.detach() > 0.1)
        assert waits == ["nonzero", "tolist"]
    assert len(kept) == len(learner.index.widths)


def test_what_is_asked_of_a_circuit(planted: Any) -> None:
    task, text = planted.task, torch.randint(0, 10, (16, 24), generator=torch.Generator().manual_seed(6))
    (circuit,) = find_circuits(planted.model, task, planted.means, PruneConfig(steps=60), (0.15,), ("edge",))
    values = {circuit.edges[0].name: 1.0, "layers.0.mlp.in.3": 0.5, nodes_of(circuit)[0].name: None}

    def answers(model: SparseTransformer, means: Means) -> list[Any]:
        judge = Judge(model, means, task.train)
        return [
            changed(model, circuit, task.heldout, values),
            effects(model, circuit, task.heldout),
            binarise(model, circuit, task),
            contexts(model, nodes_of(circuit), text, 2),
            CircuitModel(model, circuit).margins(task.heldout).tolist(),
            *(
                [
                    size and size.n_edges
                    for size in (smallest_reaching(ordered(judge, way, 0), target) for target in (0.5, 0.15))
                ]
                for way in BASELINES
            ),
        ]

    ours = answers(planted.model, planted.means)
    with pretend_gpu() as gpu:
        theirs = answers(*on(gpu, planted))
    assert theirs == ours


def on(gpu: torch.device, planted: Any) -> tuple[SparseTransformer, Means]:
    means = {site: mean.to(gpu) for site, mean in planted.means.items()}
    return copy.deepcopy(planted.model).to(gpu), means
