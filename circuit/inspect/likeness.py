"""How alike two circuits of a task are, each figure beside what random nodes give.

Of one model, their nodes and edges are compared by name. Of two models, nodes are matched within a kind of site by
their activations on the same prompts (Hungarian assignment). Activations, effects and patterns are those of the whole
models, so that circuits and random nodes are measured alike.

Shapes: R rows of a task's prompts, T time, P positions of all prompts, K nodes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from circuit.ablated.ablation import float32_activations
from circuit.ablated.compact import layers_of
from circuit.graph.checks import check_model
from circuit.graph.edges import edges_between
from circuit.graph.record import Circuit, Node, means_of
from circuit.inspect.activity import activations, answer_pattern, kept_heads
from circuit.inspect.running import nodes_of
from circuit.tasks import PairBatch
from sparse_model.errors import InputError
from sparse_model.model.sites import site_kind, site_name, site_width
from sparse_model.model.transformer import SparseTransformer

_PAIRS = 32
"""Pairs of prompts on which circuits are compared."""
DRAWS = 10
"""Sets of random nodes of the null."""
MATCHED = 0.5
"""Least correlation of activations, in magnitude, of two nodes that count as matched."""

_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Figure(NamedTuple):
    """A likeness and what random nodes give: the mean of the draws and their largest. None where there is nothing."""

    value: float | None
    null: float | None
    null_most: float | None


class Match(NamedTuple):
    """Two nodes of a kind of site, the correlation of their activations and that of their effects on each prompt."""

    first: str
    second: str
    activation: float
    effect: float | None


class Likeness(NamedTuple):
    """Two circuits compared, by their numbers. The overlaps are None where the models differ."""

    first: int
    second: int
    nodes: Figure | None
    edges: Figure | None
    matched: Figure
    effects: Figure
    attention: Figure
    matches: list[Match]


class Member(NamedTuple):
    """A circuit with its model."""

    circuit: Circuit
    model: SparseTransformer


def likenesses(members: Sequence[Member], data: PairBatch, seed: int = 0) -> list[Likeness]:
    """Every two of the circuits. InputError where they are of different tasks, or one has no nodes or another model."""
    tasks = sorted({member.circuit.task for member in members})
    if len(tasks) > 1:
        raise InputError(f"circuits of the tasks {', '.join(tasks)}; allowed: circuits of one task")
    for circuit, model in members:
        check_model(circuit, model)
        if circuit.status != "ok":
            raise InputError(f"circuit of {circuit.task} is {circuit.status}: there are no nodes to compare")
    some = data.first(_PAIRS)
    return [_pair(members, i, j, some, seed) for i in range(len(members)) for j in range(i + 1, len(members))]


def _pair(members: Sequence[Member], i: int, j: int, data: PairBatch, seed: int) -> Likeness:
    a, b = members[i], members[j]
    rng = random.Random(seed)
    draws = [_random_nodes(b, rng) for _ in range(DRAWS)]
    same = a.circuit.model == b.circuit.model
    own, theirs = nodes_of(a.circuit), nodes_of(b.circuit)
    measure = _Measures(a, b, data)
    pairs = measure.matched(own, theirs)
    random_pairs = [measure.matched(own, nodes) for nodes in draws]
    size = len(own) + len(theirs)
    return Likeness(
        i,
        j,
        _jaccard_nodes(own, theirs, draws) if same else None,
        _jaccard_edges(a, b, draws) if same else None,
        _figure(_share(pairs, size), [_share(found, size) for found in random_pairs]),
        _figure(measure.effect_likeness(pairs), [measure.effect_likeness(found) for found in random_pairs[:2]]),
        measure.attention(rng),
        [
            Match(one.name, other.name, value, measure.effect(one, other))
            for one, other, value in sorted(pairs, key=lambda pair: -abs(pair[2]))
        ],
    )


def _random_nodes(member: Member, rng: random.Random) -> list[Node]:
    """As many nodes of every site as the circuit has, drawn from all of the site."""
    found = []
    for site, channels in member.circuit.nodes.items():
        width = site_width(member.model.config, site)
        found += [Node(site, channel) for channel in sorted(rng.sample(range(width), len(channels)))]
    return found


def _figure(value: float | None, null: Sequence[float | None]) -> Figure:
    there = [one for one in null if one is not None]
    return Figure(value, sum(there) / len(there) if there else None, max(there) if there else None)


def _share(pairs: Sequence[tuple[Node, Node, float]], size: int) -> float | None:
    """Of all nodes of two circuits, the share in pairs that match."""
    return 2 * sum(abs(value) >= MATCHED for _, _, value in pairs) / size if size else None


def jaccard(a: set[object], b: set[object]) -> float | None:
    """Intersection over union; None of two empty sets."""
    return len(a & b) / len(a | b) if a | b else None


def _jaccard_nodes(own: Sequence[Node], theirs: Sequence[Node], draws: Sequence[Sequence[Node]]) -> Figure:
    return _figure(jaccard(set(own), set(theirs)), [jaccard(set(own), set(nodes)) for nodes in draws])


def _jaccard_edges(a: Member, b: Member, draws: Sequence[Sequence[Node]]) -> Figure:
    def between(nodes: Sequence[Node]) -> set[object]:
        kept = {
            site: torch.tensor([n.channel for n in nodes if n.site == site], dtype=torch.long)
            for site in b.circuit.means
        }
        return {edge.name for edge in edges_between(b.model, kept)}

    own, theirs = ({edge.name for edge in one.circuit.edges} for one in (a, b))
    return _figure(jaccard(set(own), set(theirs)), [jaccard(set(own), between(nodes)) for nodes in draws])


def correlations(a: Tensor, b: Tensor) -> _Array:
    """(K, L) of the columns of a (P, K) and b (P, L); 0 where one does not vary."""
    (a, b) = (x.double() - x.double().mean(0) for x in (a, b))
    norms = a.norm(dim=0)[:, None] * b.norm(dim=0)
    found: _Array = torch.where(norms > 1e-12, a.T @ b / norms.clamp_min(1e-12), 0.0).numpy()
    return found


class _Measures:
    """What two whole models do at given nodes on the same prompts."""

    def __init__(self, a: Member, b: Member, data: PairBatch) -> None:
        self.a, self.b, self.data = a, b, data
        self.real = torch.arange(data.tokens.shape[1]) < data.length[:, None]
        self._effects: dict[tuple[int, Node], Tensor] = {}

    def matched(self, own: Sequence[Node], theirs: Sequence[Node]) -> list[tuple[Node, Node, float]]:
        """(node, node, correlation) within each kind of site, of the largest sum of magnitudes."""
        found = []
        for kind in dict.fromkeys(site_kind(node.site) for node in own):
            first, second = ([node for node in nodes if site_kind(node.site) == kind] for nodes in (own, theirs))
            if not second:
                continue
            values = [
                activations(member.model, nodes, self.data.tokens)[self.real]
                for member, nodes in ((self.a, first), (self.b, second))
            ]
            table = correlations(*values)
            rows, columns = linear_sum_assignment(-np.abs(table))
            found += [(first[r], second[c], float(table[r, c])) for r, c in zip(rows, columns, strict=True)]
        return found

    def effect(self, one: Node, other: Node) -> float | None:
        """Correlation over prompts of what ablating each node in its model takes from the margins."""
        a, b = self._falls(0, one), self._falls(1, other)
        if float(a.std()) < 1e-9 or float(b.std()) < 1e-9:
            return None
        return float(correlations(a[:, None], b[:, None])[0, 0])

    def effect_likeness(self, pairs: Sequence[tuple[Node, Node, float]]) -> float | None:
        """Mean of `effect` over pairs; one of which a node has no effect counts as 0."""
        found = [self.effect(one, other) or 0.0 for one, other, _ in pairs]
        return sum(found) / len(found) if found else None

    def attention(self, rng: random.Random) -> Figure:
        """Mean overlap of the answer rows of kept heads, matched, beside that with random heads of the other model."""
        own, theirs = (kept_heads(member.circuit, member.model.config.d_head) for member in (self.a, self.b))
        config = self.b.model.config
        every = [(layer, head) for layer in range(config.n_layer) for head in range(config.n_head_)]
        rows = _rows(self.a, own, self.data)
        others = _rows(self.b, every, self.data)
        place = {head: i for i, head in enumerate(every)}
        draws = [rng.sample(every, min(len(theirs), len(every))) for _ in range(DRAWS)]
        found = [_overlap(rows, others[[place[head] for head in heads]]) for heads in (theirs, *draws)]
        return _figure(found[0], found[1:])

    def _falls(self, which: int, node: Node) -> Tensor:
        if (which, node) not in self._effects:
            member = (self.a, self.b)[which]
            before = _margins(member, self.data, None)
            self._effects[which, node] = before - _margins(member, self.data, node)
        return self._effects[which, node]


@torch.no_grad()
def _margins(member: Member, data: PairBatch, ablated: Node | None) -> Tensor:
    """(R,) of the whole model, with one node at its mean."""
    model, device = member.model, member.model.embedding.device
    means = means_of(member.circuit, device) if ablated else {}

    def hold(site: str, x: Tensor) -> Tensor:
        if ablated is None or site != ablated.site:
            return x
        x = x.clone()
        x[..., ablated.channel] = means[site][ablated.channel]
        return x

    tokens, row, last = data.tokens.to(device), torch.arange(len(data.length)), data.length - 1
    with float32_activations(model):
        final = model.final(tokens, hold)
        logits = model.logits(final[row, last], tokens[row, last]).cpu()
    return logits[row, data.right] - logits[row, data.wrong]


@torch.no_grad()
def _rows(member: Member, heads: Sequence[tuple[int, int]], data: PairBatch) -> Tensor:
    """(heads, R, T) attention of the answer position."""
    model, d_head = member.model, member.model.config.d_head
    seen: dict[str, Tensor] = {}

    def look(site: str, x: Tensor) -> Tensor:
        if site.endswith((".attn.q", ".attn.k")):
            seen[site] = x.cpu()
        return x

    with float32_activations(model):
        model.final(data.tokens.to(model.embedding.device), look)
    found = []
    for layer, head in heads:
        part = slice(head * d_head, (head + 1) * d_head)
        sink = layers_of(model)[layer].attn.sink
        q, k = (seen[site_name(layer, f"attn.{kind}")][..., part] for kind in "qk")
        found.append(answer_pattern(q, k, data, None if sink is None else float(sink[head]))[0])
    return torch.stack(found) if found else torch.zeros(0, *data.tokens.shape)


def _overlap(own: Tensor, theirs: Tensor) -> float | None:
    """Mean over matched heads and prompts of the attention that two heads give to the same tokens, 0 to 1."""
    if not len(own) or not len(theirs):
        return None
    table = torch.minimum(own[:, None], theirs[None]).sum(-1).mean(-1).double().numpy()
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].mean())
