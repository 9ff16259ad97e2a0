"""`sweeps train` and `sweeps prune`: one model, one circuit, without a sweep and without Ray."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from circuit.ablated.ablation import Pretraining
from circuit.graph.record import Circuit
from circuit.proofs.verdicts import verdicts
from circuit.pruning import Method, find_circuit
from circuit.search.watch import Progress, Update
from circuit.tasks import check_source, task_data
from sparse_model import storage
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import from_pretrained, save_pretrained
from sparse_model.training.checkpoint import Checkpoints
from sparse_model.training.loop import train as train_model
from sweeps.commands.data import StorageOption, prepared
from sweeps.show.progress import Show, StudyProgress
from sweeps.show.text import terminal
from sweeps.study.space import Space, TrialConfig
from sweeps.study.study import Study, load_study
from sweeps.study.yamlfile import parse_yaml
from sweeps.trial.task_circuits import circuit_row, measured, settings, text_windows, windows

CPU = torch.device("cpu")

DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:<number>; default: a GPU where torch sees one")
]


def train(
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
        result = train_model(
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
    console.print(f"validation loss {result.metrics['val_loss']:.4f} nats per token ({result.dtype}); model in {out}")
    return 0


def prune(
    model: Annotated[
        str, typer.Argument(help="folder or URI of a model, as `sweeps train`, `sweeps import` or a trial left it")
    ],
    task: Annotated[
        str, typer.Argument(help="name of a task (see `sweeps tasks`), or a .jsonl file of pairs of your own")
    ],
    out: Annotated[str | None, typer.Option(help="write the circuit into this JSON file")] = None,
    method: Annotated[Method, typer.Option(help="prune nodes alone, or edges as well")] = "node",
    target: Annotated[float | None, typer.Option(help="task loss in nats, instead of the study's target")] = None,
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
    """Find the circuit of one task in one model, and prove it. Exits 1 if the model cannot do the task.

    Mean activations are taken over the study's training text, in the model's own tokens.
    """
    check_source(task)  # before the data are prepared
    if out is not None:
        storage.check_writable(storage.parent(out))
    asked = load_study(study, storage_uri)
    config = settings(asked, target, stability=stability, restarts=restarts or asked.pruning.restarts)
    trained, tokenizer, known = opened(model, asked, device_named(device))
    prompts = task_data(task, tokenizer, pairs=config.pairs, seed=config.seed)
    with Show(Console(stderr=True)) as show:
        circuit = find_circuit(
            trained, prompts, known.means, config, method=method, text=known.text, progress=searching(show)
        )
    describe(circuit, terminal())
    if out is not None:
        circuit.save(out)
    return 0 if circuit.status == "ok" else 1


def searching(show: Show) -> Progress:
    """The progress of a search as a bar for each stage; nothing where there is no terminal."""

    def tell(update: Update) -> None:
        share = update.step / update.steps if update.steps else 0.0
        if show.console.is_terminal:
            show.stage(update.stage, share, f"{update.nodes:,} nodes, loss {update.loss:.3f}")

    return tell


def describe(circuit: Circuit, console: Console) -> None:
    """Print a circuit's figures, then which proofs it passes."""
    words = ("summary", "reason", *(name for name in circuit_row(circuit) if name.startswith("resample")))
    for name, value in circuit_row(circuit).items():
        if value is not None and name not in words:
            console.print(f"{name:>17}: {value:.4g}" if isinstance(value, float) else f"{name:>17}: {value}")
    marks = {True: "passes", False: "FAILS", None: "not measured"}
    if circuit.status == "unsolved":
        console.print(f"the model's own loss is {circuit.unpruned_loss:.3f}, too high to look for a circuit (--target)")
    for proof, passed, said in verdicts(circuit):
        console.print(f"{marks[passed]:>17}: {proof}: {said}", soft_wrap=True)


def device_named(name: str | None) -> torch.device:
    """The device of a name; without one, a GPU where there is one. InputError for one that is not here."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if name is not None and name not in here:
        raise InputError(f"--device {name!r}; allowed: {', '.join(here)}{'' if gpus else ' (torch sees no GPU)'}")
    return torch.device(name or ("cuda" if gpus else "cpu"))


def opened(model: str, study: Study, device: torch.device = CPU) -> tuple[SparseTransformer, Tokenizer, Pretraining]:
    """A model, its tokenizer and what searches take from pretraining data, as a trial of the study would."""
    trained, tokenizer, text = opened_with_text(model, study, device)
    return trained, tokenizer, measured(trained, text)


def opened_with_text(
    model: str, study: Study, device: torch.device = CPU
) -> tuple[SparseTransformer, Tokenizer, Tensor]:
    """A model, its tokenizer and training text (n, context): what a trial of the study would take its means of; the
    same text in the model's tokens where they are others."""
    trained, tokenizer = from_pretrained(model, device)
    console = Console(stderr=True)
    data = prepared(study, console)
    if data.tokenizer.to_json() == tokenizer.to_json():
        return trained, tokenizer, windows(trained, data)
    said = f"the model's tokenizer is not that of study {study.name}: means are of the study's text in its own"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    return trained, tokenizer, text_windows(trained, tokenizer, study.corpus)


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
    try:
        params = space.params(entry)
    except ValueError as error:
        raise InputError(f"--set: {error}") from None
    for field, distribution in space.sampled(params.get("kind", space.kinds()[0])).items():
        if field not in given:
            raise InputError(f"--set {field}=… is needed; allowed: {distribution}")
    return space.config(params, seed)
