"""What a change to a circuit does to its margins: parts ablated, nodes held at values. One compacted model serves all.

Shapes: R rows of a task's prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from circuit.ablated.batches import answer_batch
from circuit.ablated.calibration import task_loss
from circuit.ablated.compact import Gates
from circuit.graph.record import Circuit, Edge, Node
from circuit.inspect.running import CircuitModel
from circuit.tasks import PairBatch
from sparse_model.model.sites import site_width
from sparse_model.model.transformer import SparseTransformer

_POSITIONS = 16384
"""Positions per batch: what is left of a model is small."""


class Outcome(NamedTuple):
    """Loss in nats, mean margin in nats and share of right answers, all calibrated as the circuit is."""

    loss: float
    margin: float
    accuracy: float


class Probe:
    """A circuit on prompts, changed in one way after the other."""

    def __init__(self, model: SparseTransformer, circuit: Circuit, data: PairBatch) -> None:
        """InputError where the circuit is of another model or has no nodes."""
        self.values: Mapping[Node, float] = {}
        self.running = CircuitModel(model, circuit, visit=self._visit)
        self.circuit, self.device = circuit, self.running.device
        self.widths = {site: site_width(model.config, site) for site in circuit.means}
        self.blocks = {between.target: between for between in self.running.compact.projections()}
        self.order = data.length.argsort(stable=True)  # so that little of a batch is padding
        at_once = max(1, _POSITIONS // int(data.length.max()))
        self.batches = [answer_batch(data, rows, self.device) for rows in torch.split(self.order, at_once)]

    @torch.no_grad()
    def margins(self, parts: Sequence[Node | Edge] = (), values: Mapping[Node, float] | None = None) -> Tensor:
        """Calibrated margins (R,), in the order of the rows, with parts at their means and kept nodes at values."""
        self.values = values or {}
        gates, calibration = self._gates(parts), self.running.calibration
        found = [
            calibration.scale * self.running.compact.margins(batch, gates) + calibration.shift * batch.sides
            for batch in self.batches
        ]
        margins = torch.empty(len(self.order), dtype=torch.float64)
        margins[self.order] = torch.cat(found).double().cpu()
        return margins

    def outcome(self, parts: Sequence[Node | Edge] = ()) -> Outcome:
        return outcome_of(self.margins(parts))

    def _gates(self, parts: Sequence[Node | Edge]) -> Gates:
        nodes: dict[str, Tensor] = {}
        edges: dict[str, Tensor] = {}
        for part in parts:
            if isinstance(part, Edge):
                self._close(edges, part)
            else:
                if part.site not in nodes:
                    nodes[part.site] = torch.ones(self.widths[part.site], device=self.device)
                nodes[part.site][part.channel] = 0
        return Gates(nodes, edges)

    def _close(self, gates: dict[str, Tensor], edge: Edge) -> None:
        between, key = self.blocks[edge.target.site], edge.target.site
        if key not in gates:
            gates[key] = torch.ones_like(between.weight)
        row, column = between.outputs == edge.target.channel, between.inputs == edge.source.channel
        if row.any() and column.any():  # q and k of a head without a kept value do nothing
            gates[key][row.nonzero()[0, 0], column.nonzero()[0, 0]] = 0

    def _visit(self, site: str, channels: Tensor, x: Tensor) -> Tensor:
        for node, value in self.values.items():
            if node.site == site:
                x = torch.where(channels == node.channel, value, x)
        return x


def outcome_of(margins: Tensor) -> Outcome:
    """Of calibrated margins (R,)."""
    loss = float(task_loss(margins, torch.ones_like(margins)))
    return Outcome(loss, float(margins.mean()), float((margins.sign() + 1).mean() / 2))
