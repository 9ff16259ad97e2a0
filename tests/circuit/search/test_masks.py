"""Mask learning, piece by piece."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from circuit.ablated.nodes import NodeIndex
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.learning import Adam, clipped, gates_of
from circuit.search.masks import best_state, learn_masks
from circuit.search.watch import Update, Watch


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_gates_are_steps_with_the_gradient_of_a_sigmoid(temperature: float) -> None:
    tau = torch.linspace(-1, 1, 21, requires_grad=True)
    upstream = torch.randn(21)
    gates = gates_of(tau, temperature)
    assert gates.tolist() == [1.0 if t > 0 else 0.0 for t in tau.tolist()]
    (got,) = torch.autograd.grad((gates * upstream).sum(), tau)
    (wanted,) = torch.autograd.grad((torch.sigmoid(tau / temperature) * upstream).sum(), tau)
    torch.testing.assert_close(got, wanted)


def test_adam_is_adamw() -> None:
    torch.manual_seed(0)
    ours = torch.randn(10, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    adam = Adam(ours, beta2=0.95, weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.03, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.1)
    for _ in range(20):
        gradient = torch.randn(10)
        adam.step(gradient, 0.03)
        theirs.grad = gradient
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_clipping_bounds_the_joint_norm_and_nothing_else() -> None:
    large = clipped([torch.tensor([3.0, 0.0]), torch.tensor([4.0])])
    assert [g.tolist() for g in large] == [pytest.approx([0.6, 0.0]), pytest.approx([0.8])]
    small = [torch.tensor([0.3]), torch.tensor([0.4])]
    assert all(torch.equal(a, b) for a, b in zip(clipped(small), small, strict=True))


def test_index_goes_both_ways(planted: Any) -> None:
    index = NodeIndex(planted.model)
    keep = index.flat(planted.nodes)
    assert int(keep.sum()) == 8
    back = {site: tuple(channels.tolist()) for site, channels in index.channels(keep).items() if len(channels)}
    assert back == planted.nodes


def test_learning_is_reproducible_and_bounded(planted: Any) -> None:
    config = PruneConfig(steps=12)
    seen: list[Update] = []
    data, means, reaches = (
        planted.task.train,
        planted.means,
        Judge(planted.model, planted.means, planted.task.train).at(0.15),
    )
    first = learn_masks(planted.model, data, means, config, reaches, watch=Watch(seen.append))
    again = learn_masks(planted.model, data, means, config, reaches)
    other = learn_masks(planted.model, data, means, config.model_copy(update={"seed": 1}), reaches)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.abs().max()) <= 1
    assert [update.step for update in seen] == list(range(1, 13))
    assert all(math.isfinite(update.loss) for update in seen)


def test_the_smallest_state_that_reaches_is_chosen_and_the_rest_ordered_by_lifetime() -> None:
    states = [
        torch.tensor([0.5, 0.4, 0.3, 0.2, -0.1]),
        torch.tensor([0.5, 0.4, 0.3, -0.2, -0.9]),
        torch.tensor([0.6, 0.5, -0.8, -0.1, -0.9]),
        torch.tensor([0.7, -0.2, -0.8, -0.9, -0.1]),  # learning drifted past the target
    ]
    near = [True, True, True, True]
    chosen = best_state(states, near, lambda keep: bool(keep[:2].all()))
    assert chosen.argsort(descending=True).tolist() == [0, 1, 2, 3, 4]
    assert (chosen > 0).tolist() == [True, True, False, False, False]
    farther = best_state(states, [True, True, False, True], lambda keep: bool(keep[:2].all()))
    assert (farther > 0).tolist() == [True, True, True, False, False]
    last = best_state(states, near, lambda keep: False)
    assert (last > 0).tolist() == [True, False, False, False, False]
    assert last.argsort(descending=True).tolist() == [0, 1, 2, 3, 4]


def test_useless_nodes_go_and_those_that_carry_the_answer_stay(planted: Any) -> None:
    """Masks alone. The planted attention is saturated, so that gradients do not show what its q and k are worth."""
    config = PruneConfig(steps=80, steer=0)
    data = planted.task.train
    tau = learn_masks(planted.model, data, planted.means, config, Judge(planted.model, planted.means, data).at(0.15))
    index = NodeIndex(planted.model)
    useful = index.flat(planted.nodes)
    carriers = {"layers.1.attn.in": (0,), "layers.1.attn.v": (1,), "layers.1.attn.out": (5,), "final.in": (5,)}
    assert float(tau[index.flat(carriers)].min()) > 0
    assert float(tau[~useful].median()) < 0
