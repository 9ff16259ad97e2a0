"""The circuit as an object: which nodes and edges, how well it does the task, and the proofs; saved as JSON."""

from __future__ import annotations

import hashlib
from importlib import import_module
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.ablated.compact import Edges
from circuit.graph.evidence import Proofs
from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.model.config import Config
from sparse_model.model.transformer import SparseTransformer
from sparse_model.storage.text import decoded, parse_json, read_text

CIRCUIT_VERSION: Literal[3] = 3
"""Of a circuit's JSON: raised when a field is added, changes its meaning or goes. There is no reading of others."""


class Node(NamedTuple):
    """One channel at one node site."""

    site: str
    channel: int

    @property
    def name(self) -> str:
        """E.g. layers.1.attn.q.5"""
        return f"{self.site}.{self.channel}"


class Edge(NamedTuple):
    """A nonzero weight between two kept nodes. `matrix` is qkv, out, up or down of the given layer."""

    matrix: Literal["qkv", "out", "up", "down"]
    layer: int
    source: Node
    target: Node
    weight: float

    @property
    def name(self) -> str:
        """E.g. layers.1.attn.in.3:layers.1.attn.q.5"""
        return f"{self.source.name}:{self.target.name}"


class Circuit(Config):
    """A task, a model, and the nodes that do the task when all others are held at their means.

    Losses are two-way cross-entropies in nats. `loss`, `heldout_loss` and `heldout_accuracy` are of the circuit under
    its `scale` and `shift`; `uncalibrated_loss` is of its logits as they are, `unpruned_loss` of the
    whole model's own. Of any other status than ok there are no nodes, and `loss` is what the calibrated whole model
    reaches.
    """

    format: Literal["circuit-sweeps/circuit"] = Field("circuit-sweeps/circuit", description="what the JSON holds")
    schema_version: Literal[3] = Field(CIRCUIT_VERSION, description="of this object's JSON; see docs/circuit_json.md")
    task: str = Field(description="name of the task")
    model: str = Field(description="fingerprint of the model's configuration and weights")
    method: Literal["node", "edge", "faithful"] = Field(
        "node",
        description="what is pruned: nodes, with all weights between the kept ones as edges; or edges as well; or "
        "nodes, such that the circuit holds whatever subset of the others is ablated",
    )
    status: Literal["ok", "unsolved", "unreached", "stopped"] = Field(
        description="unsolved: the whole model does not do the task; unreached: it does, but not even all of it "
        "reaches the target; stopped: the search was told to"
    )
    target_loss: float = Field(description="calibrated loss on the training pairs that had to be reached")
    nodes: dict[str, tuple[int, ...]] = Field(description="kept channels by node site; sites without any left out")
    edges: tuple[Edge, ...] = Field(
        description="nonzero weights between kept nodes in qkv, out, up and down; with method edge, those along which "
        "the source's own value passes: along the others it is held at its mean"
    )
    n_nodes: int = Field(description="kept nodes")
    n_edges: int = Field(description="edges, embedding and unembedding not counted")
    n_embedding_edges: int = Field(
        description="nonzero embedding weights of tokens in the training prompts, in residual channels that a kept "
        "attn.in, mlp.in or final.in node reads"
    )
    n_unembedding_edges: int = Field(description="nonzero unembedding weights of answer tokens at kept final.in nodes")
    loss: float = Field(description="on the training pairs")
    heldout_loss: float = Field(description="on held-out pairs")
    heldout_accuracy: float = Field(description="share of held-out prompts whose right answer wins")
    uncalibrated_loss: float = Field(description="on held-out pairs with the logits as they are")
    unpruned_loss: float = Field(
        description="of the whole model on held-out pairs, its logits as they are: what tells whether a task is solved"
    )
    proofs: Proofs = Field(description="what was measured beside these losses; see docs/circuit_json.md")
    summary: str = Field(description="which proofs the circuit passes, which it fails, which were not measured")
    scale: float = Field(description="calibration: logits are multiplied by it")
    shift: float = Field(description="calibration: added to the logit of the answer with the lower token id")
    means: dict[str, tuple[float, ...]] = Field(description="mean activation of every channel, by node site")
    seconds: float = Field(description="wall time of the search, proofs included")

    @model_validator(mode="after")
    def _check(self) -> Circuit:
        kept = sum(len(channels) for channels in self.nodes.values())
        if kept != self.n_nodes or len(self.edges) != self.n_edges:
            raise ValueError(f"{kept} nodes and {len(self.edges)} edges; counted as {self.n_nodes} and {self.n_edges}")
        nodes = {Node(site, channel) for site, channels in self.nodes.items() for channel in channels}
        for node in nodes:
            if not 0 <= node.channel < len(self.means.get(node.site, ())):
                raise ValueError(f"node {node.name} has no mean")
        for edge in self.edges:
            if not {edge.source, edge.target} <= nodes:
                raise ValueError(f"edge {edge.name} is not between two of the nodes")
        if len(nodes) < kept or len({edge.name for edge in self.edges}) < len(self.edges):
            raise ValueError("a node or an edge is there twice")
        if self.scale < 0:
            raise ValueError(f"scale {self.scale:g}; allowed: 0 and more")
        return self

    def to_json(self) -> str:
        """The whole object as JSON; `from_json` gives back an equal one."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes, name: str = "circuit") -> Circuit:
        """The circuit a JSON text holds; InputError, naming `name`, where it is truncated, no circuit, or of another
        version than this one's."""
        if (version := _version(text, name)) is None:
            raise InputError(f"{name}: not a saved circuit (schema_version is missing)")
        if version != CIRCUIT_VERSION:
            raise InputError(f"{name}: schema_version {version!r}; allowed: {CIRCUIT_VERSION}; find the circuit anew")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "content"
            raise InputError(f"{name}: not a saved circuit ({where}: {first['msg']})") from None

    def save(self, uri: storage.PathOrURI) -> None:
        """Write the JSON to a path or fsspec URI, whole or not at all."""
        storage.write_bytes_atomic(storage.as_uri(uri), self.to_json().encode())

    @classmethod
    def load(cls, uri: storage.PathOrURI) -> Circuit:
        """Read what `save` wrote; InputError where it is missing, truncated or something else."""
        uri = storage.as_uri(uri)
        return cls.from_json(read_text(uri), uri)

    def page(self, model: SparseTransformer, task: Any, text: Tensor | None = None, **options: Any) -> str:
        """The circuit as one HTML file that opens offline: `circuit.pages.circuit_page`, which has the options.

        `task` is its prompts (`TaskData`), `text` (n, T) windows of pretraining tokens.
        """
        page: str = _pages().circuit_page(self, model, task, text, **options)
        return page

    def _repr_html_(self) -> str:
        """A still graph and the figures, for notebooks."""
        return str(_pages().still_html(self))

    def kept_edges(self, device: torch.device) -> Edges | None:
        """The edges as an `AblatedModel` takes them; None of another method than edge, where all between kept nodes
        are."""
        if self.method != "edge":
            return None
        pairs: dict[str, list[tuple[int, int]]] = {}
        for edge in self.edges:
            pairs.setdefault(edge.target.site, []).append((edge.target.channel, edge.source.channel))
        return {site: torch.tensor(found, device=device) for site, found in pairs.items()}

    def proven(self, proofs: Proofs, summary: str, seconds: float) -> Circuit:
        """The same circuit with its proofs and all the time that it took."""
        return self.model_copy(update={"proofs": proofs, "summary": summary, "seconds": seconds})


def _pages() -> Any:
    """The room that draws circuits, which builds on this file."""
    return import_module("circuit.pages")


def _version(text: str | bytes, name: str) -> Any:
    """What a JSON object says of its version, if anything; as if of this one where it is no object."""
    try:
        content = parse_json(text if isinstance(text, str) else decoded(text, "content"), "content")
    except InputError as error:
        raise InputError(f"{name}: not a saved circuit ({error})") from None
    return content.get("schema_version") if isinstance(content, dict) else CIRCUIT_VERSION


def fingerprint(model: SparseTransformer) -> str:
    """16 hex digits that depend on every weight and the configuration, and on nothing else."""
    digest = hashlib.sha256(model.config.model_dump_json().encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def decimal_means(means: Means) -> dict[str, tuple[float, ...]]:
    """Means as the shortest decimals that read back as the same float32."""
    return {name: tuple(float(str(x)) for x in np.asarray(mean.cpu())) for name, mean in means.items()}


def means_of(circuit: Circuit, device: torch.device) -> Means:
    """The means a circuit was found with, bit for bit."""
    return {name: torch.tensor(mean, dtype=torch.float32, device=device) for name, mean in circuit.means.items()}
