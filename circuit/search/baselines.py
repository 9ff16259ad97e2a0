"""Other ways to order nodes, for comparison: by attribution, or at random (the paper's figure 31).

All go through the bisection and the edge count that learned masks go through. Shapes: N nodes of a model in the order
of `NodeIndex`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from circuit.graph.edges import count_edges
from circuit.search.attribution import attributions
from circuit.search.discretise import bisect_nodes
from circuit.search.evaluation import Judge

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
    steps = [1.0] if baseline == "attribution" else [(step + 0.5) / STEPS for step in range(STEPS)]
    everything = judge.everything().float()
    return torch.stack([attributions(judge, openness * everything) for openness in steps]).mean(0).abs()


def sizes(judge: Judge, order: Tensor, targets: Iterable[float]) -> dict[float, int | None]:
    """Edges of the circuit of fewest highest nodes of `order` (N,) that reaches each target; None where not all of
    them do."""
    return {target: _size(judge, bisect_nodes(judge, order, target)) for target in targets}


def _size(judge: Judge, keep: Tensor | None) -> int | None:
    return None if keep is None else count_edges(judge.model, judge.index.channels(keep))
