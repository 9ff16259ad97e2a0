"""Other ways to order nodes, for comparison: by attribution, or at random (the paper's figure 31).

All go through the bisection and the edge count that learned masks go through. Shapes: N nodes of a model in the order
of `NodeIndex`, B prompts, T time, C channels of a site.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from circuit.calibration import task_loss
from circuit.compact import AblatedModel
from circuit.discretise import bisect_nodes
from circuit.edges import count_edges
from circuit.evaluation import Judge

Baseline = Literal["attribution", "integrated", "random"]
BASELINES: tuple[Baseline, ...] = ("attribution", "integrated", "random")

STEPS = 8
"""Of integrated gradients, between all nodes at their means and none."""


def scores(judge: Judge, baseline: Baseline, seed: int = 0) -> Tensor:
    """(N,) what each node is worth: the higher, the longer it stays.

    attribution: |gradient × (activation − mean)|, summed over positions and averaged over prompts, which is the
    first-order rise in loss when the node alone is ablated. integrated: the same along the path on which all nodes
    move from their means to their values together. random: a permutation.
    """
    if baseline == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(judge.index.total, generator=generator).to(judge.sides.device)
    if baseline == "attribution":
        return attributions(judge, (1.0,)).abs()
    return attributions(judge, [(step + 0.5) / STEPS for step in range(STEPS)]).abs()


def attributions(judge: Judge, openness: Iterable[float]) -> Tensor:
    """(N,) derivative of the task loss by each node's gate, negated, averaged over points at which all gates are
    `openness`. At 1 it is gradient × (mean − activation)."""
    everything = judge.everything()
    whole = AblatedModel(judge.model, judge.means, judge.index.channels(everything))
    points = list(openness)
    total = torch.zeros_like(everything, dtype=torch.float32)
    for point in points:
        gates = torch.full_like(total, point).requires_grad_()
        for batch in judge.batches:
            loss = task_loss(whole.margins(batch, judge.index.split(gates)), batch.sides)
            (gradient,) = torch.autograd.grad(loss, gates)
            total -= gradient * len(batch.sides) / len(judge.sides) / len(points)
    return total


def sizes(judge: Judge, order: Tensor, targets: Iterable[float]) -> dict[float, int | None]:
    """Edges of the circuit of fewest highest nodes of `order` (N,) that reaches each target; None where not all of
    them do."""
    return {target: _size(judge, bisect_nodes(judge, order, target)) for target in targets}


def _size(judge: Judge, keep: Tensor | None) -> int | None:
    return None if keep is None else count_edges(judge.model, judge.index.channels(keep))
