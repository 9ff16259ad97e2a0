"""Binarisation of a circuit: each node is replaced by a step of two values (METHOD 8; the paper's appendix C).

Shapes: B prompts, T time, S kept channels of a site, P positions of all prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from circuit.ablated.calibration import IDENTITY, Calibration, calibrated_loss
from circuit.graph.record import Circuit, Node
from circuit.inspect.running import CircuitModel, nodes_of
from circuit.search.evaluation import Score
from circuit.tasks import PairBatch, TaskData
from sparse_model.model.transformer import SparseTransformer

QUANTILES = 16
"""Splits tried for each node beside the nearest one."""


class Step(NamedTuple):
    """`high` above the threshold, `low` elsewhere: each the mean of the values on its side."""

    threshold: float
    low: float
    high: float


class Binary(NamedTuple):
    """A binarised circuit: its score on held-out pairs, and each node's step with the score when it alone is binary.

    Losses are in nats; each is calibrated anew on the training pairs, as the circuit's own is.
    """

    circuit: Score
    together: Score
    steps: dict[Node, Step]
    alone: dict[Node, Score]


def binarise(model: SparseTransformer, circuit: Circuit, task: TaskData) -> Binary:
    """Fit a step to every node on the training pairs, and measure them all at once and one by one on the others.

    InputError where the circuit is of another model.
    """
    running = _Stepped(model, circuit, task.train)
    together = running.fitted()
    alone = {node: running.heldout({node: step}, task.heldout) for node, step in together.items()}
    whole = CircuitModel(model, circuit).score(task.heldout)
    return Binary(whole, running.heldout(together, task.heldout), together, alone)


class _Stepped:
    """A circuit with some of its nodes binary: those of `steps`."""

    def __init__(self, model: SparseTransformer, circuit: Circuit, train: PairBatch) -> None:
        bare = circuit.model_copy(update={"scale": 1.0, "shift": 0.0})
        self.running = CircuitModel(model, bare, visit=self._visit)
        self.train, self.sides = train, torch.where(train.right < train.wrong, 1.0, -1.0)
        last = (train.length - 1).to(self.running.device)
        self.real = torch.arange(train.tokens.shape[1], device=last.device) <= last[:, None]
        self.steps: Mapping[Node, Step] = {}
        self.wanted: Node | None = None
        self.seen = torch.zeros(0)

    def fitted(self) -> dict[Node, Step]:
        """The steps of all nodes that do anything, in the order of a forward pass: each fitted to what its node does
        when those before it are steps already. Of the `candidates` the one of least task loss is taken."""
        steps: dict[Node, Step] = {}
        for node in nodes_of(self.running.circuit):
            if len(values := self._values(steps, node)):
                tried = candidates(values)
                losses = [self._calibrated({**steps, node: step})[0] for step in tried]
                steps[node] = tried[losses.index(min(losses))]
        return steps

    def heldout(self, steps: Mapping[Node, Step], data: PairBatch) -> Score:
        """Score with these nodes binary, calibrated on the training pairs."""
        calibration = self._calibrated(steps)[1]
        self.running.calibration = calibration
        score = self.running.score(data)
        self.running.calibration = IDENTITY
        return score

    def _calibrated(self, steps: Mapping[Node, Step]) -> tuple[float, Calibration]:
        self.steps = steps
        return calibrated_loss(self.running.margins(self.train).cpu(), self.sides)

    def _values(self, steps: Mapping[Node, Step], node: Node) -> Tensor:
        """(P,) of a node at all positions of the prompts where it is computed; none if it does nothing."""
        self.steps, self.wanted, self.seen = steps, node, torch.zeros(0)
        self.running.margins(self.train)
        self.wanted = None
        return self.seen

    def _visit(self, site: str, channels: Tensor, x: Tensor) -> Tensor:
        """x (B, T, S) with the channels that have a step on it; keeps what the wanted node does."""
        for i, channel in enumerate(channels.tolist()):
            node = Node(site, channel)
            if node == self.wanted:
                self.seen = x[..., i][self.real] if x.shape[1] == self.real.shape[1] else x[..., i].flatten()
            if node in self.steps:
                threshold, low, high = self.steps[node]
                x = x.clone()
                x[..., i] = torch.where(x[..., i] > threshold, high, low)
        return x


def candidates(values: Tensor) -> list[Step]:
    """Steps to choose from for values (P,): the two values nearest to them in mean square, and splits at quantiles."""
    ordered = values.double().sort().values
    places = (ordered[1:] > ordered[:-1]).nonzero().squeeze(1) + 1  # how many values are below each possible split
    if not len(places):
        return [Step(*[float(ordered[0])] * 3)]
    below, total = ordered.cumsum(0)[places - 1], ordered.sum()
    nearest = int((below**2 / places + (total - below) ** 2 / (len(ordered) - places)).argmax())
    quantiles = torch.linspace(0, len(places) - 1, QUANTILES).round().long().tolist()
    return [_split(ordered, int(places[i])) for i in dict.fromkeys([nearest, *quantiles])]


def _split(ordered: Tensor, below: int) -> Step:
    threshold = float(ordered[below - 1] + ordered[below]) / 2
    return Step(threshold, float(ordered[:below].mean()), float(ordered[below:].mean()))
