"""How a circuit's page is made: `circuit_page` is the table of contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from circuit.graph.checks import check_model
from circuit.graph.record import Circuit, Node
from circuit.inspect.activity import activations, kept_heads
from circuit.inspect.importance import (
    FEW_PAIRS,
    MANY_PARTS,
    MOST_DOSED,
    MOST_EDGES,
    MOST_STEPPED,
    PAIRED,
    ablation_effects,
    doses,
    paired,
    shrinking,
    steps,
)
from circuit.inspect.probe import Probe
from circuit.inspect.running import nodes_of
from circuit.inspect.runs import Seen, seen_on
from circuit.pages.attention import attention_data
from circuit.pages.head import example_pair, head_data
from circuit.pages.notes import Notes
from circuit.pages.packing import rounded
from circuit.pages.passages import passages
from circuit.pages.picture import picture_data
from circuit.pages.prompts import calibrated, prompts_data
from circuit.pages.render import asset, html
from circuit.pages.roles import Places, alike, figures, places_of, role_words, tokens_at
from circuit.pages.shown import TokenDecoder, TokenTable
from circuit.tasks import TaskData
from sparse_model.model.transformer import SparseTransformer

_FORMAT = "circuit-sweeps/page"
LARGEST_PAGE = 2_000_000
"""Bytes of a page."""
SCRIPTS = ("base.js", "graph.js", "panel.js", "prompts.js", "attention.js", "tables.js", "circuit.js")


class Page(str):
    """The HTML of a page; `data` is what it draws."""

    data: dict[str, Any]


def circuit_page(
    circuit: Circuit,
    model: SparseTransformer,
    task: TaskData,
    text: Tensor | None = None,
    *,
    tokenizer: TokenDecoder | None = None,
    origin: Mapping[str, str] | None = None,
    relatives: Sequence[Circuit] = (),
    notes: Notes | None = None,
    remarks: Sequence[str] = (),
) -> Page:
    """One circuit as one HTML file that opens offline.

    `text` (n, T) are windows of pretraining tokens, for contexts. Without a `tokenizer` tokens are shown by number.
    `origin` says what made the circuit, `relatives` are circuits of the same task and model at other sizes, `remarks`
    what else is not on the page. InputError where circuit, model, task or notes do not belong together.
    """
    check_model(circuit, model)
    (notes or Notes.none_on(circuit)).require(circuit)
    data = page_data(circuit, model, task, text, tokenizer, origin or {}, relatives, notes, remarks)
    page = _rendered(data)
    while len(page.encode()) > LARGEST_PAGE and _shortened(data):
        page = _rendered(data)
    return page


def _rendered(data: dict[str, Any]) -> Page:
    """The page of its data."""
    scripts = SCRIPTS if data["head"]["status"] == "ok" else ("base.js",)
    styles, assets = [asset("base.css"), asset("circuit.css")], [asset(name) for name in (*scripts, "ready.js")]
    values = {"head": data["head"], "omitted": data["omitted"], "example": _spelled(data)}
    page = Page(html(asset("circuit.html"), data, styles, assets, **values))
    page.data = data
    return page


def _spelled(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The example pair with its tokens as texts."""
    if "example" not in data:
        return None
    texts = data["tokens"]
    return {
        side: {
            "tokens": [(texts[token], i in one["cue"]) for i, token in enumerate(one["tokens"])],
            "right": texts[one["right"]],
            "margin": one["margin"],
        }
        for side, one in data["example"].items()
    }


def page_data(
    circuit: Circuit,
    model: SparseTransformer,
    task: TaskData,
    text: Tensor | None,
    tokenizer: TokenDecoder | None,
    origin: Mapping[str, str],
    relatives: Sequence[Circuit],
    notes: Notes | None,
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything a page draws, as JSON. Figures are of held-out prompts."""
    omitted = list(remarks)
    made = {
        "model": circuit.model,
        **origin,
        "made with": f"circuit-sweeps {_version()}, circuit schema {circuit.schema_version}",
    }
    data: dict[str, Any] = {
        "format": _FORMAT,
        "version": 1,
        "head": head_data(circuit, made),
        "omitted": omitted,
        "notes": (notes or Notes.none_on(circuit)).model_dump(),
    }
    if circuit.status == "ok":
        data |= _measured(circuit, model, task, text, TokenTable(tokenizer), omitted)
        data["ablations"]["relatives"] = [
            [other.n_edges, other.n_nodes, other.loss, other.heldout_loss, other.method, other.target_loss]
            for other in (circuit, *relatives)
            if other.status == "ok"
        ]
    return rounded(data)  # type: ignore[no-any-return]


def _measured(
    circuit: Circuit,
    model: SparseTransformer,
    task: TaskData,
    text: Tensor | None,
    table: TokenTable,
    omitted: list[str],
) -> dict[str, Any]:
    """What is measured on prompts and text."""
    prompts, places = task.heldout, places_of(task.heldout)
    layers = frozenset(layer for layer, _ in kept_heads(circuit, model.config.d_head))
    runs = {
        name: seen_on(model, circuit, prompts, whole=name == "model", layers=layers) for name in ("circuit", "model")
    }
    margins = calibrated(circuit, prompts, runs["circuit"].margins)
    shown = prompts_data(circuit, prompts, runs["circuit"], runs["model"], places, table, omitted)
    picture = picture_data(model, circuit, prompts, places, table, omitted)
    ablations = _ablations(circuit, model, task, omitted)
    return {
        "example": example_pair(prompts, margins, places, table),
        "graph": picture,
        "nodes": _nodes(circuit, model, task, text, runs, places, ablations, table, omitted),
        "prompts": shown,
        "attention": attention_data(model, circuit, prompts, runs, places, shown.pop("numbers"), table, omitted),
        "ablations": ablations,
        "tokens": table.texts,
    }


def _ablations(circuit: Circuit, model: SparseTransformer, task: TaskData, omitted: list[str]) -> dict[str, Any]:
    """Effects of parts alone and of pairs, loss as nodes go, steps."""
    nodes = nodes_of(circuit)
    few = Probe(model, circuit, task.heldout.first(FEW_PAIRS))
    many = circuit.n_nodes + circuit.n_edges > MANY_PARTS
    probe = few if many else Probe(model, circuit, task.heldout)
    of_nodes = ablation_effects(probe, nodes)
    edges = list(circuit.edges)
    by_weight = sorted(range(len(edges)), key=lambda i: -abs(edges[i].weight))[:MOST_EDGES]
    measured = dict(zip(by_weight, ablation_effects(probe, [edges[i] for i in by_weight]), strict=True))
    if len(edges) > MOST_EDGES:
        omitted.append(f"Effects of edges: the {MOST_EDGES:,} of the largest weights, of {len(edges):,}")
    strongest = sorted(range(len(nodes)), key=lambda i: (-of_nodes[i][0], i))[:PAIRED]
    if len(nodes) > PAIRED:
        omitted.append(f"Pairs of nodes: among the {PAIRED} of the largest effects")
    stepped = None
    if 0 < len(nodes) <= MOST_STEPPED:
        stepped = steps(model, circuit, task)
    elif nodes:
        omitted.append(f"Two-valued steps: not fitted for circuits of more than {MOST_STEPPED} nodes")
    return {
        "before": list(probe.outcome()),
        "measured_on": len(probe.order) // 2,
        "nodes": of_nodes,
        "edges": [measured.get(i) for i in range(len(edges))],
        "pairs": paired(few, nodes, strongest),
        "few": min(FEW_PAIRS, task.heldout.n_pairs),
        "shrinking": shrinking(probe, nodes, [effect[0] for effect in of_nodes]),
        "steps": stepped,
    }


def _nodes(
    circuit: Circuit,
    model: SparseTransformer,
    task: TaskData,
    text: Tensor | None,
    runs: Mapping[str, Seen],
    places: Places,
    ablations: Mapping[str, Any],
    table: TokenTable,
    omitted: list[str],
) -> list[dict[str, Any]]:
    """The panel of every node."""
    nodes = nodes_of(circuit)
    few = Probe(model, circuit, task.heldout.first(FEW_PAIRS))
    read = None if text is None or not nodes else activations(model, nodes, text)
    if text is None:
        omitted.append("Contexts: no pretraining text was given")
    if len(nodes) > MOST_DOSED:
        omitted.append(f"Dose and response: of the {MOST_DOSED} nodes of the largest effects")
    dosed = set(sorted(range(len(nodes)), key=lambda i: (-ablations["nodes"][i][0], i))[:MOST_DOSED])
    return [
        _node(node, i, task, runs, places, table)
        | ({"dose": _dose(few, node, runs["circuit"].values[..., i], places)} if i in dosed else {})
        | ({"text": passages(read[..., i], text, table)} if read is not None and text is not None else {})
        for i, node in enumerate(nodes)
    ]


def _node(
    node: Node, number: int, task: TaskData, runs: Mapping[str, Seen], places: Places, table: TokenTable
) -> dict[str, Any]:
    values = {name: run.values[..., number] for name, run in runs.items()}
    found = {name: figures(value, places) for name, value in values.items()}
    return {
        "words": role_words(node, found["circuit"], values["circuit"][places.answer]),
        "circuit": found["circuit"] | tokens_at(values["circuit"], task.heldout, places, table.of),
        "model": found["model"],
        "alike": alike(values["circuit"][places.real], values["model"][places.real]),
    }


def _dose(probe: Probe, node: Node, values: Tensor, places: Places) -> dict[str, list[float]]:
    seen = values[places.real]
    return doses(probe, node, float(seen.min()), float(seen.max()))


def _shortened(data: dict[str, Any]) -> bool:
    """Leave out the largest part that a page can be without, and say so; whether there was any left."""
    done = {line.split(":")[0] for line in data["omitted"]}
    for name in ("contexts of nodes", "attention patterns", "pairs of nodes"):
        if (line := f"Left out {name}") not in done:
            data["omitted"].append(f"{line}: the page would be larger than {LARGEST_PAGE / 1e6:.0f} MB")
            break
    else:
        return False
    if name == "contexts of nodes":
        for node in data.get("nodes", []):
            node.pop("text", None)
    elif name == "attention patterns":
        data["attention"].update(heads=[], rows=[])
    else:
        data["ablations"].update(pairs=[])
    return True


def _version() -> str:
    try:
        return version("circuit-sweeps")
    except PackageNotFoundError:
        return "unknown version"
