"""`sweeps train`, `prune` and `import`: one model, one circuit, a released model; without a sweep and without Ray."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer
from rich.console import Console

from circuit.graph.evidence import Level
from circuit.pruning import find_circuit
from circuit.search.config import Method
from circuit.search.evaluation import model_score
from circuit.tasks import check_source, task_data
from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.openai import load_openai
from sparse_model.saved.pretrained import save_pretrained
from sparse_model.training.checkpoint import Checkpoints
from sparse_model.training.loop import train
from sweeps.commands.opening import opened, prepared
from sweeps.commands.options import DeviceOption, StorageOption, device_named
from sweeps.show.circuit_text import describe, searching
from sweeps.show.progress import Show, StudyProgress
from sweeps.show.text import terminal
from sweeps.study.space import Space, TrialConfig
from sweeps.study.study import load_study
from sweeps.study.yamlfile import parse_yaml
from sweeps.trial.task_circuits import harder_prompts, settings


def train_command(
    out: Annotated[str, typer.Argument(help="folder or URI for the model; its name is the run's")],
    study: Annotated[str, typer.Option(help="a study file, or a shipped name: the model's corpus and space")] = (
        "quickstart"
    ),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="one field of the space, e.g. kind=dense or training.fraction=0.05; repeatable"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of weights and data order")] = 0,
    checkpoints: Annotated[
        str | None, typer.Option(help="folder or URI for checkpoints; the same command then resumes from there")
    ] = None,
    device: DeviceOption = None,
    storage_uri: StorageOption = None,
) -> int:
    """Train one model of a study's space. Fields of the space that are not --set have to be constants."""
    asked = load_study(study, storage_uri)
    config = chosen(asked.space, set_ or [], seed)
    where = device_named(device)
    console = terminal()
    for place in (out, *([] if checkpoints is None else [checkpoints])):
        storage.check_writable(place)
    data = prepared(asked, console)
    with Show(console) as show:
        progress = StudyProgress(show, asked)
        progress.started("model", config)
        result = train(
            config.model,
            config.training,
            data,
            checkpoints=None if checkpoints is None else Checkpoints(checkpoints),
            report=lambda metrics: progress.training("model", metrics),
            device=where,
        )
    if result.status != "ok":
        console.print(f"{result.status}: {result.reason}")
        return 1
    save_pretrained(result.model, data.tokenizer, out)
    figures = f"validation loss {result.metrics['val_loss']:.4f} nats per token"
    figures += f", {result.metrics['dead_neurons']:.1%} of neurons dead ({result.dtype})"
    console.print(f"{figures}; model in {out}")
    return 0


def prune_command(
    model: Annotated[
        str, typer.Argument(help="folder or URI of a model, as `sweeps train`, `sweeps import` or a trial left it")
    ],
    task: Annotated[
        str, typer.Argument(help="name of a task (see `sweeps tasks`), or a .jsonl file of pairs of your own")
    ],
    out: Annotated[str | None, typer.Option(help="write the circuit into this JSON file")] = None,
    method: Annotated[
        Method,
        typer.Option(help="prune nodes; or edges as well; or nodes, to hold whatever subset of the rest is ablated"),
    ] = "node",
    proofs: Annotated[
        Level, typer.Option(help="basic ones, or full: all of them, which takes some forty times the search")
    ] = "basic",
    target: Annotated[float | None, typer.Option(help="task loss in nats, instead of the study's target")] = None,
    solved_loss: Annotated[
        float | None,
        typer.Option(
            help="own loss of the whole model up to which the task is solved, in nats, instead of the study's"
        ),
    ] = None,
    max_scale: Annotated[
        float | None, typer.Option(help="what calibration may multiply logits by at the most; default: the study's")
    ] = None,
    restarts: Annotated[
        int | None,
        typer.Option(min=1, help="search from this many seeds and combine them, instead of the study's number"),
    ] = None,
    stability: Annotated[
        int, typer.Option(min=0, help="search again from this many other seeds, and compare the nodes")
    ] = 0,
    study: Annotated[str, typer.Option(help="whose corpus and pruning settings: a file or a shipped name")] = (
        "quickstart"
    ),
    device: DeviceOption = None,
    storage_uri: StorageOption = None,
) -> int:
    """Find the circuit of one task in one model, and prove it. Exits 1 if there is none to be found.

    Mean activations are taken over the study's training text, in the model's own tokens.
    """
    check_source(task)  # before the data are prepared
    if out is not None:
        storage.check_writable(storage.parent(out))
    asked = load_study(study, storage_uri)
    given = {"restarts": restarts, "solved_loss": solved_loss, "max_scale": max_scale}
    changes = {name: value for name, value in given.items() if value is not None}
    config = settings(asked, target, stability=stability, **changes)
    trained, tokenizer, known = opened(model, asked, device_named(device))
    prompts = task_data(task, tokenizer, pairs=config.pairs, seed=config.seed)
    harder = harder_prompts(trained, tokenizer, task, config)
    with Show(Console(stderr=True)) as show:
        circuit = find_circuit(
            trained,
            prompts,
            known.means,
            config,
            method=method,
            text=known.text,
            harder=harder,
            proofs=proofs,
            progress=searching(show),
        )
    console = terminal()
    describe(circuit, console)
    if harder is not None:
        console.print(
            f"{model_score(trained, harder).accuracy:.1%} of the task's harder variant right by the whole model"
        )
    if out is not None:
        circuit.save(out)
    return 0 if circuit.status == "ok" else 1


def chosen(space: Space, assignments: list[str], seed: int) -> TrialConfig:
    """The one trial of a space that `field=value` texts single out; InputError where they leave a choice."""
    entry: dict[str, Any] = {}
    given = {text.partition("=")[0] for text in assignments}
    for text in assignments:
        field, equals, value = text.partition("=")
        section, dot, name = field.partition(".")
        if not equals or (field != "kind" and not (dot and name)):
            raise InputError(f"--set {text!r}; allowed: kind=…, model.<field>=… or training.<field>=…")
        if dot:
            entry.setdefault(section, {})[name] = parse_yaml(f"value: {value}", f"--set {text!r}")["value"]
        else:
            entry[field] = value
    if "kind" not in entry and len(space.kinds()) > 1:
        raise InputError(f"--set kind=… is needed; allowed: {', '.join(space.kinds())}")
    try:
        params = space.params(entry)
    except ValueError as error:
        raise InputError(f"--set: {error}") from None
    for field, distribution in space.sampled(params.get("kind", space.kinds()[0])).items():
        if field not in given:
            raise InputError(f"--set {field}=… is needed; allowed: {distribution}")
    return space.config(params, seed)


def import_command(
    folder: Annotated[str, typer.Argument(help="folder or URI of beeg_config.json and final_model.pt")],
    out: Annotated[str, typer.Option(help="folder or URI for the model, to be used like one of `sweeps train`")],
    tokenizer: Annotated[
        str | None, typer.Option(help="folder or URI of encoder.json and vocab.bpe, if it is another one")
    ] = None,
) -> int:
    """Turn a checkpoint that the paper's authors released into a model for `sweeps prune`. Nothing is downloaded."""
    with warnings.catch_warnings(record=True) as ignored:
        warnings.simplefilter("always")
        model, its_tokenizer = load_openai(folder, tokenizer)
    for warning in ignored:
        Console(stderr=True).print(
            f"warning: {warning.message}", markup=False, emoji=False, highlight=False, soft_wrap=True
        )
    if its_tokenizer is None:
        raise InputError(f"{folder}: no encoder.json and vocab.bpe here; name their folder with --tokenizer")
    storage.check_writable(out)
    save_pretrained(model, its_tokenizer, out)
    terminal().print(f"{_described(model)}; model in {out}", highlight=False, soft_wrap=True)
    return 0


def _described(model: SparseTransformer) -> str:
    parameters = list(model.parameters())
    total, nonzero = sum(p.numel() for p in parameters), sum(int(p.count_nonzero()) for p in parameters)
    config = model.config
    return f"{config.n_layer} layers of width {config.d_model}, {total:,} parameters, {nonzero:,} of them not zero"
