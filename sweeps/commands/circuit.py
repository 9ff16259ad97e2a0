"""`sweeps circuit`: look at one circuit that was found. What it is, when its nodes are active, which parts matter."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from circuit.graph.checks import check_model
from circuit.graph.evidence import Level
from circuit.graph.record import Circuit, Edge, means_of
from circuit.inspect.binarise import Binary, binarise
from circuit.inspect.contexts import Place, contexts
from circuit.inspect.running import CircuitModel, changed, effects, nodes_of, part_named
from circuit.proofs.prove import Ground, prove, with_proofs
from circuit.proofs.verdicts import verdicts
from circuit.search.evaluation import Score
from circuit.search.watch import Watch
from circuit.tasks import TASKS, TaskData, task_data
from sparse_model import storage
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import from_pretrained
from sweeps.commands.opening import opened_with_text
from sweeps.commands.options import StorageOption
from sweeps.show.circuit_text import describe, searching
from sweeps.show.progress import Show
from sweeps.show.text import terminal
from sweeps.study.study import load_study
from sweeps.trial.task_circuits import RESAMPLED_WINDOWS, harder_prompts, settings

_BEFORE, _AFTER = 12, 4
"""Tokens shown before and after the one at which a node has its value."""

circuit_app = typer.Typer(help="Look at one circuit: what it is, when its nodes are active, which of its parts matter.")

FileArgument = Annotated[str, typer.Argument(help="the circuit's JSON file or URI")]
ModelOption = Annotated[str, typer.Option(help="folder or URI of the model it was found in; another is refused")]
PromptStudyOption = Annotated[str, typer.Option(help="whose text and number of prompts: a file or a shipped name")]
TaskOption = Annotated[str | None, typer.Option(help="the .jsonl file of the task, where it came from one")]


@circuit_app.command("summary")
def summary_command(file: FileArgument) -> int:
    """What a circuit is: its figures, which proofs it passes, its nodes and its edges. Needs no model."""
    circuit, console = Circuit.load(file), terminal()
    describe(circuit, console)
    for site, channels in circuit.nodes.items():
        console.print(f"{site:>22}  {', '.join(map(str, channels))}", soft_wrap=True)
    if circuit.edges:
        table = _table("edge", "weight")
        for edge in circuit.edges:
            table.add_row(edge.name, f"{edge.weight:+.3f}")
        console.print(table)
    return 0


@circuit_app.command("contexts")
def contexts_command(
    file: FileArgument,
    model: ModelOption,
    node: Annotated[
        list[str] | None, typer.Option(help="name of a node, e.g. layers.0.attn.q.5; repeatable; default: all")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="contexts shown at either end")] = 3,
    study: PromptStudyOption = "quickstart",
    storage_uri: StorageOption = None,
) -> int:
    """Where in training text each node of a circuit is most and least active: the token in brackets.

    Values are of the whole model. Places are from different windows of the study's text.
    """
    circuit, console = Circuit.load(file), terminal()
    trained, tokenizer, text = opened_with_text(model, load_study(study, storage_uri))
    check_model(circuit, trained)
    wanted = [part_named(trained, circuit, name) for name in node] if node else nodes_of(circuit)
    nodes = [part for part in wanted if not isinstance(part, Edge)]
    if len(nodes) < len(wanted):
        raise InputError("--node names an edge; allowed: <site>.<channel>")
    for one, found in contexts(trained, nodes, text, count).items():
        console.print(
            f"[bold]{one.name}[/bold]  not zero at {found.active:.1%} of {text.numel():,} tokens", markup=True
        )
        for place in (*found.top, *reversed(found.bottom)):
            console.print(f"  {place.value:+8.3f}  {_shown(place, text, tokenizer)}", soft_wrap=True, markup=True)
    return 0


@circuit_app.command("ablate")
def ablate_command(
    file: FileArgument,
    model: ModelOption,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="parts to change together: a node or an edge, or <name>=<value>; default: each in turn"),
    ] = None,
    task: TaskOption = None,
    study: PromptStudyOption = "quickstart",
    storage_uri: StorageOption = None,
) -> int:
    """The task loss of a circuit on held-out prompts before and after its parts are ablated, or held at values.

    An ablated node is at its mean. An edge is <source>:<target>, as `sweeps circuit summary` names them; when it is
    changed, its target alone sees the source at the value.
    """
    circuit = Circuit.load(file)
    trained, prompts = _prompted(circuit, model, task, study, storage_uri)
    if names:
        values = dict(_assigned(name) for name in names)
        if len(values) < len(names):
            raise InputError(f"parts {' '.join(names)}; allowed: each part once")
        found = {" ".join(names): changed(trained, circuit, prompts.heldout, values)}
    else:
        found = effects(trained, circuit, prompts.heldout)
    before = CircuitModel(trained, circuit).score(prompts.heldout).loss
    terminal().print(f"{circuit.task}: loss {before:.3f} on {prompts.heldout.n_pairs} held-out pairs, nothing changed")
    table = _table("changed", "loss", "rise", "right")
    for name, effect in found.items():
        table.add_row(name, f"{effect.after:.3f}", f"{effect.after - effect.before:+.3f}", f"{effect.accuracy:.1%}")
    terminal().print(table if found else "it has no nodes: what the bigram table and the biases say is enough")
    return 0


@circuit_app.command("prove")
def prove_command(
    file: FileArgument,
    model: ModelOption,
    proofs: Annotated[Level, typer.Option(help="basic or full: all there are")] = "full",
    out: Annotated[str | None, typer.Option(help="write the circuit with its proofs into this JSON file")] = None,
    stability: Annotated[int, typer.Option(min=0, help="search again from this many other seeds")] = 0,
    task: TaskOption = None,
    study: PromptStudyOption = "quickstart",
    storage_uri: StorageOption = None,
) -> int:
    """Every proof that a circuit can pass or fail. Searches are those of the study. Exits 1 if it fails any.

    Full proofs search again: for five kinds of nonsense, in the model with its weights shuffled, and for other circuits
    of the task. They take some forty times as long as the circuit's own search.
    """
    circuit = Circuit.load(file)
    if circuit.status != "ok":
        raise InputError(f"{file}: the circuit of {circuit.task} is {circuit.status}: there is nothing to prove")
    if out is not None:
        storage.check_writable(storage.parent(out))
    asked = load_study(study, storage_uri)
    trained, prompts = _prompted(circuit, model, task, study, storage_uri)
    config = settings(asked, circuit.target_loss, stability=stability)
    _, tokenizer, text = opened_with_text(model, asked)
    means = means_of(circuit, trained.embedding.device)
    harder = harder_prompts(trained, tokenizer, task or circuit.task, config)
    with Show(Console(stderr=True)) as show:
        ground = Ground(trained, prompts, means, config, text[:RESAMPLED_WINDOWS], harder, Watch(searching(show)))
        proven = with_proofs(circuit, prove(ground, circuit, proofs))
    describe(proven, terminal())
    if out is not None:
        proven.save(out)
    return 1 if any(verdict.passed is False for verdict in verdicts(proven)) else 0


@circuit_app.command("binarise")
def binarise_command(
    file: FileArgument,
    model: ModelOption,
    task: TaskOption = None,
    study: PromptStudyOption = "quickstart",
    storage_uri: StorageOption = None,
) -> int:
    """Replace each node by a step of two values, fitted on the training prompts, and measure the loss on held-out ones:
    of all nodes at once, and of each alone."""
    circuit = Circuit.load(file)
    trained, prompts = _prompted(circuit, model, task, study, storage_uri)
    _show_binary(binarise(trained, circuit, prompts), terminal())
    return 0


def _prompted(
    circuit: Circuit, model: str, task: str | None, study: str, storage_uri: str | None
) -> tuple[SparseTransformer, TaskData]:
    """The circuit's model and prompts, drawn as the study draws them."""
    config = settings(load_study(study, storage_uri))
    if task is None and circuit.task not in TASKS:
        raise InputError(f"task {circuit.task} is not in the table; name its file with --task")
    trained, tokenizer = from_pretrained(model)
    check_model(circuit, trained)
    prompts = task_data(task or circuit.task, tokenizer, pairs=config.pairs, seed=config.seed)
    if prompts.name != circuit.task:
        raise InputError(f"--task {task}: task {prompts.name}; the circuit is of {circuit.task}")
    return trained, prompts


def _assigned(text: str) -> tuple[str, float | None]:
    name, equals, value = text.partition("=")
    if not equals:
        return name, None
    try:
        return name, float(value)
    except ValueError:
        raise InputError(f"{text!r}: value {value!r}; allowed: a number") from None


def _shown(place: Place, text: Tensor, tokenizer: Tokenizer) -> str:
    """The tokens around a place, the one itself in brackets, on one line."""
    window, at = text[place.window].tolist(), place.position
    parts = (window[max(0, at - _BEFORE) : at], [window[at]], window[at + 1 : at + 1 + _AFTER])
    before, here, after = (escape(repr(tokenizer.decode(part))[1:-1]) for part in parts)
    return f"{before}[bold]⟦{here}⟧[/bold]{after}"


def _show_binary(found: Binary, console: Console) -> None:
    def said(score: Score) -> str:
        return f"loss {score.loss:.3f}, {score.accuracy:.1%} right"

    console.print(f"held-out prompts: {said(found.circuit)}; with all nodes binary: {said(found.together)}")
    table = _table("node", "low", "up to", "high", "loss alone")
    for node, step in found.steps.items():
        figures = (f"{value:+.3f}" for value in (step.low, step.threshold, step.high))
        table.add_row(node.name, *figures, f"{found.alone[node].loss:.3f}")
    console.print(table)


def _table(first: str, *rest: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for heading in rest:
        table.add_column(heading, justify="right")
    return table
