"""What the parts of a circuit are worth: ablated one by one, two by two, one after the other, or held at values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from circuit.graph.record import Circuit, Edge, Node
from circuit.inspect.binarise import binarise
from circuit.inspect.probe import Outcome, Probe, outcome_of
from circuit.inspect.running import nodes_of
from circuit.tasks import TaskData
from sparse_model.model.transformer import SparseTransformer

FEW_PAIRS = 32
"""Pairs of prompts for what takes many runs: doses, pairs of nodes."""
MOST_EDGES = 600
"""Edges of a circuit whose effects are measured one by one."""
MANY_PARTS = 300
"""Nodes and edges of a circuit above which their effects are measured on a few pairs instead of all."""
STEP_PAIRS = 16
"""Pairs on which steps are fitted, and as many on which they are measured: a fit takes seventeen runs of each node."""
MOST_STEPPED, MOST_DOSED = 48, 40
"""Nodes of a circuit whose steps are fitted, and whose response is measured."""
PAIRED = 12
"""Nodes, those of the largest effects, that are ablated two by two."""
DOSES = 9
_CURVE = 24
"""Points of the curve of loss against size."""
_APART = 0.1
"""Interaction over the smaller effect of two nodes below which they count as independent."""


def effect(before: Outcome, after: Outcome) -> list[float]:
    """[rise of the loss, fall of the mean margin, accuracy after]."""
    return [after.loss - before.loss, before.margin - after.margin, after.accuracy]


def ablation_effects(probe: Probe, parts: Sequence[Node | Edge]) -> list[list[float]]:
    """Of the ablation of each part alone."""
    before = probe.outcome()
    return [effect(before, probe.outcome([part])) for part in parts]


def paired(probe: Probe, nodes: Sequence[Node], numbers: Sequence[int]) -> list[list[Any]]:
    """[node, node, fall of the mean margin without the first, the second, both, word], strongest interaction first.

    `numbers` are those of the nodes. Redundant: both together are missed more than the two falls add up to, each can
    stand in for the other. Synergistic: less, each is worth little without the other.
    """
    before = probe.outcome().margin
    alone = {i: before - probe.outcome([nodes[i]]).margin for i in numbers}
    found = []
    for i, j in itertools.combinations(numbers, 2):
        both = before - probe.outcome([nodes[i], nodes[j]]).margin
        excess = both - alone[i] - alone[j]
        least = min(abs(alone[i]), abs(alone[j]))
        word = "independent" if abs(excess) <= _APART * least else "redundant" if excess > 0 else "synergistic"
        found.append([i, j, alone[i], alone[j], both, word])
    return sorted(found, key=lambda row: -abs(row[4] - row[2] - row[3]))


def shrinking(probe: Probe, nodes: Sequence[Node], rises: Sequence[float]) -> list[list[float]]:
    """[nodes left, loss]: nodes ablated one after the other, those of the least effect first, without recalibration."""
    order = sorted(range(len(nodes)), key=lambda i: (rises[i], i))
    counts = sorted({round(i * len(order) / _CURVE) for i in range(_CURVE + 1)})
    return [[len(order) - n, probe.outcome([nodes[i] for i in order[:n]]).loss] for n in counts]


def doses(probe: Probe, node: Node, low: float, high: float) -> dict[str, list[float]]:
    """Mean calibrated margins on prompts A and B with a node held at values from low to high at all positions."""
    grid = torch.linspace(low, high, DOSES).tolist() if high > low else [low]
    margins = [probe.margins(values={node: value}) for value in grid]
    return {
        "grid": grid,
        "a": [float(found[::2].mean()) for found in margins],
        "b": [float(found[1::2].mean()) for found in margins],
        "loss": [outcome_of(found).loss for found in margins],
    }


def steps(model: SparseTransformer, circuit: Circuit, task: TaskData) -> dict[str, Any]:
    """Each node's two-valued step and the held-out loss with it alone binary; and the loss with all of them."""
    some = TaskData(task.name, task.train.first(STEP_PAIRS), task.heldout.first(STEP_PAIRS))
    found = binarise(model, circuit, some)
    numbers = {node: i for i, node in enumerate(nodes_of(circuit))}
    return {
        "pairs": min(STEP_PAIRS, task.train.n_pairs),
        "before": found.circuit.loss,
        "together": found.together.loss,
        "accuracy": found.together.accuracy,
        "nodes": {str(numbers[node]): [*step, found.alone[node].loss] for node, step in found.steps.items()},
    }
