"""A circuit as a model that runs: margins of the two answers, and what becomes of them when a part is changed.

Shapes: B prompts, T time, R rows of a task's prompts, S kept channels of a site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from circuit.ablated.batches import AnswerBatch, all_batches, answer_batch, check_pairs
from circuit.ablated.calibration import Calibration, task_loss
from circuit.ablated.compact import AblatedModel, Edges, Visit
from circuit.ablated.nodes import NodeIndex
from circuit.graph.checks import check_model
from circuit.graph.record import Circuit, Edge, Node, means_of
from circuit.search.evaluation import Score
from circuit.tasks import PairBatch
from sparse_model.errors import InputError
from sparse_model.model.inputs import check_tokens
from sparse_model.model.sites import site_width
from sparse_model.model.transformer import SparseTransformer


class Effect(NamedTuple):
    """Task loss in nats before and after a change, and accuracy after it."""

    before: float
    after: float
    accuracy: float


class CircuitModel:
    """The compacted model of a circuit: everything outside is a constant, folded into what is left.

    `nodes` are held at the given values, by name; `edges` carry the given values in place of their sources', and so do
    nodes outside the circuit. `visit` may replace the values of kept nodes, see `AblatedModel`.
    """

    def __init__(
        self,
        model: SparseTransformer,
        circuit: Circuit,
        *,
        nodes: Mapping[Node, float] | None = None,
        edges: Mapping[Edge, float] | None = None,
        visit: Visit | None = None,
    ) -> None:
        """InputError where the circuit is of another model, or has no nodes."""
        check_model(circuit, model)
        if circuit.status != "ok":
            raise InputError(f"circuit of {circuit.task} is {circuit.status}: there are no nodes to run")
        self.model, self.circuit, self.device = model, circuit, model.embedding.device
        self.calibration = Calibration(circuit.scale, circuit.shift)
        self.other_visit = visit
        self._hold(nodes or {}, edges or {})

    def holding(self, nodes: Mapping[Node, float], edges: Mapping[Edge, float]) -> CircuitModel:
        """The same circuit with these held and no others. The model is not compared with the circuit's again."""
        other = copy(self)
        other._hold(nodes, edges)
        return other

    def _hold(self, nodes: Mapping[Node, float], edges: Mapping[Edge, float]) -> None:
        self.means, self.held = means_of(self.circuit, self.device), dict(nodes)
        for node, value in self.held.items():
            if not self._inside(node):
                self.means[node.site][node.channel] = value
        index = NodeIndex(self.model)
        kept = index.channels(index.flat(self.circuit.nodes))
        self.compact = AblatedModel(self.model, self.means, kept, self._edges(edges), self._visit)
        for edge, value in edges.items():
            amount = edge.weight * (value - float(self.means[edge.source.site][edge.source.channel]))
            self.compact.add_input(edge.target.site, edge.target.channel, amount)

    def __call__(self, tokens: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
        """Calibrated margins (B,) logit(right) - logit(wrong) in nats after prompts (B, T), all of one length.

        InputError for tokens of other axes, or none of the model's vocabulary.
        """
        check_tokens(tokens, self.model.config)
        B, T = tokens.shape
        for what, answers in (("right", right), ("wrong", wrong)):
            if answers.shape != (B,):
                raise InputError(f"{what} of shape {tuple(answers.shape)}; allowed: ({B},), one answer a prompt")
            check_tokens(answers[None], self.model.config, longest=B, what=what)
        length = torch.full((B,), T)
        sides = torch.where(right < wrong, 1.0, -1.0)
        batch = AnswerBatch(*(field.to(self.device) for field in (tokens, length - 1, right, wrong, sides)))
        return self._margins(batch)

    def margins(self, data: PairBatch) -> Tensor:
        """Calibrated margins (R,) of a task's rows, in their order."""
        check_pairs(self.model, data, "prompts")
        return self._margins(answer_batch(data, torch.arange(len(data.length)), self.device))

    def score(self, data: PairBatch) -> Score:
        """Task loss in nats and accuracy."""
        check_pairs(self.model, data, "prompts")
        margins = torch.cat([self._margins(batch) for batch in all_batches(data, self.device)]).double()
        return Score(float(task_loss(margins, torch.ones_like(margins))), float((margins.sign() + 1).mean() / 2))

    @torch.no_grad()
    def _margins(self, batch: AnswerBatch) -> Tensor:
        return self.calibration.scale * self.compact.margins(batch) + self.calibration.shift * batch.sides

    def _inside(self, node: Node) -> bool:
        return node.channel in self.circuit.nodes.get(node.site, ())

    def _edges(self, changed: Mapping[Edge, float]) -> Edges | None:
        if not changed:
            return self.circuit.kept_edges(self.device)
        left = tuple(edge for edge in self.circuit.edges if edge not in changed)
        return self.circuit.model_copy(update={"edges": left, "method": "edge"}).kept_edges(self.device)

    def _visit(self, site: str, channels: Tensor, x: Tensor) -> Tensor:
        if self.other_visit is not None:
            x = self.other_visit(site, channels, x)
        for node, value in self.held.items():
            if node.site == site:
                x = torch.where(channels == node.channel, value, x)
        return x


def changed(model: SparseTransformer, circuit: Circuit, data: PairBatch, values: Mapping[str, float | None]) -> Effect:
    """What becomes of a circuit when nodes or edges are held at values, by name; None is the mean: ablation.

    A node is held at all positions, also one outside the circuit. An edge is held alone: its target sees the source at
    the value. InputError for a name that is neither, with what is allowed, and for a value that is not finite.
    """
    parts = {part_named(model, circuit, name): value for name, value in values.items()}
    if len(parts) < len(values):
        raise InputError(f"parts {' '.join(values)}; allowed: each part once")
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise InputError(f"{name}: value {value}; allowed: a finite number")
    unchanged = CircuitModel(model, circuit)
    return Effect(unchanged.score(data).loss, *_after(unchanged, data, parts))


def effects(model: SparseTransformer, circuit: Circuit, data: PairBatch) -> dict[str, Effect]:
    """What the ablation of every single node and edge of a circuit does, the most harmful first."""
    unchanged = CircuitModel(model, circuit)
    before = unchanged.score(data).loss
    parts: list[Node | Edge] = [*nodes_of(circuit), *circuit.edges]
    found = {part.name: Effect(before, *_after(unchanged, data, {part: None})) for part in parts}
    return dict(sorted(found.items(), key=lambda item: -item[1].after))


def _after(unchanged: CircuitModel, data: PairBatch, values: Mapping[Node | Edge, float | None]) -> Score:
    nodes, edges = dict[Node, float](), dict[Edge, float]()
    for part, value in values.items():
        source = part.source if isinstance(part, Edge) else part
        held = unchanged.circuit.means[source.site][source.channel] if value is None else value
        if isinstance(part, Edge):
            edges[part] = held
        else:
            nodes[part] = held
    return unchanged.holding(nodes, edges).score(data)


def nodes_of(circuit: Circuit) -> list[Node]:
    """The kept nodes, in the order of a forward pass."""
    return [Node(site, channel) for site, channels in circuit.nodes.items() for channel in channels]


def part_named(model: SparseTransformer, circuit: Circuit, name: str) -> Node | Edge:
    """The node of the model, or the edge of the circuit, of this name."""
    if ":" in name:
        for edge in circuit.edges:
            if edge.name == name:
                return edge
        raise InputError(f"{name!r} is no edge of the circuit of {circuit.task}; it has {len(circuit.edges)}")
    site, _, channel = name.rpartition(".")
    if site not in circuit.means:
        raise InputError(f"{name!r} is no node; allowed: <site>.<channel>, e.g. layers.0.attn.q.5")
    width = site_width(model.config, site)
    if not channel.isdecimal() or int(channel) >= width:
        raise InputError(f"{name!r}: channel {channel!r}; allowed: 0 to {width - 1}")
    return Node(site, int(channel))
