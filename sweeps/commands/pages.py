"""`sweeps circuit page`, `sweeps circuit compare` and `sweeps report`: files to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from circuit.graph.record import Circuit
from circuit.inspect.likeness import Member, likenesses
from circuit.pages import Notes
from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.saved.pretrained import from_pretrained
from sweeps.commands.opening import opened_with_text
from sweeps.commands.options import StorageOption
from sweeps.engine.parallel import on_all_cores
from sweeps.pages.compare import COMPARED_FIGURES, comparison_data, comparison_page
from sweeps.pages.one_circuit import CONTEXT_WINDOWS, drawn, prompts_named, study_of
from sweeps.pages.report import DrawnPages, ToldReport, write_report
from sweeps.show.progress import Show
from sweeps.show.text import terminal
from sweeps.study.study import Study, load_study

TextOption = Annotated[
    str | None,
    typer.Option("--study", help="whose text and prompts: a file or a shipped name; default: the model's own"),
]


def page_command(
    file: Annotated[str, typer.Argument(help="the circuit's JSON file or URI")],
    model: Annotated[str, typer.Option(help="folder or URI of the model it was found in; another is refused")],
    out: Annotated[str | None, typer.Option(help="file or URI of the page; default: beside the circuit")] = None,
    notes: Annotated[str | None, typer.Option(help="notes that were downloaded from a page of the circuit")] = None,
    task: Annotated[str | None, typer.Option(help="the .jsonl file of the task, where it came from one")] = None,
    study: TextOption = None,
    storage_uri: StorageOption = None,
) -> int:
    """Draw a circuit as one HTML file that opens offline: graph, nodes, prompts, attention, ablations, notes."""
    circuit = Circuit.load(file)
    read = None if notes is None else Notes.load(notes)
    if read is not None:
        read.require(circuit)
    where = out or f"{file.removesuffix('.json')}.html"
    storage.check_writable(storage.parent(where))
    asked = study_for(model, study, storage_uri)
    trained, tokenizer, text = opened_with_text(model, asked)
    made = drawn(circuit, file, model, asked, trained, tokenizer, text[:CONTEXT_WINDOWS], task=task, notes=read)
    storage.write_bytes_atomic(where, made.encode())
    for line in made.data["omitted"]:
        terminal().print(f"not on the page: {line}", markup=False, soft_wrap=True)
    terminal().print(f"page: {where} ({len(made.encode()) / 1e6:.2f} MB)", markup=False, soft_wrap=True)
    return 0


def compare_command(
    files: Annotated[list[str], typer.Argument(metavar="A B...", help="JSON files or URIs of circuits of one task")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="model of the circuits: one for all, or one for each in order; default: that of the trial"),
    ] = None,
    form: Annotated[
        Literal["table", "json"], typer.Option("--format", help="of the answer on standard output")
    ] = "table",
    out: Annotated[str | None, typer.Option(help="HTML file for the figures and the graphs side by side")] = None,
    task: Annotated[str | None, typer.Option(help="the .jsonl file of the task, where it came from one")] = None,
    study: TextOption = None,
    storage_uri: StorageOption = None,
) -> int:
    """How alike circuits of one task are: of one model by their nodes and edges, of several by what their nodes do.

    Every figure stands beside what random nodes of the second model give.
    """
    if len(files) < 2 or len(set(files)) < len(files):
        raise InputError(f"circuits {' '.join(files)}; allowed: two or more, each once")
    circuits = [Circuit.load(file) for file in files]
    uris = _models(files, model)
    opened = {uri: from_pretrained(uri) for uri in dict.fromkeys(uris)}
    members = [Member(circuit, opened[uri][0]) for circuit, uri in zip(circuits, uris, strict=True)]
    tokenizers = {tokenizer.to_json() for _, tokenizer in opened.values()}
    if len(tokenizers) > 1:
        raise InputError("the models have different tokenizers; allowed: models that read the same prompts")
    prompts = prompts_named(circuits[0], study_for(uris[0], study, storage_uri), opened[uris[0]][1], task)
    found = likenesses(members, prompts.heldout)
    names = _short(files)
    data = comparison_data(names, circuits, found)
    if out is not None:
        d_heads = [member.model.config.d_head for member in members]
        storage.write_bytes_atomic(out, comparison_page(names, circuits, d_heads, data).encode())
    if form == "json":
        print(json.dumps(data, indent=1))
        return 0
    terminal().print(_likeness_table(data))
    if out is not None:
        terminal().print(f"page: {out}", markup=False, soft_wrap=True)
    return 0


def _models(files: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """The model of every circuit."""
    if given:
        if len(given) not in (1, len(files)):
            raise InputError(f"{len(given)} models for {len(files)} circuits; allowed: one for all, or one for each")
        return [*given] * (len(files) // len(given))
    found = []
    for file in files:
        parts = file.rsplit("/", 3)
        if len(parts) != 4 or parts[1] != "circuits":
            raise InputError(f"{file}: not at <study>/circuits/<trial>/; name its model with --model")
        found.append(storage.join(parts[0], "models", parts[2]))
    return found


def _short(files: Sequence[str]) -> list[str]:
    """Paths without what all of them begin with."""
    parts = [file.removesuffix(".json").split("/") for file in files]
    common = 0
    while all(len(p) > common + 1 for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    return ["/".join(p[common:]) for p in parts]


def _likeness_table(data: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"Circuits of {data['task']}", title_justify="left")
    for heading in ("circuits", "likeness", "", "random nodes", "best draw"):
        table.add_column(heading, justify="left" if heading in ("circuits", "likeness") else "right", overflow="fold")
    for pair in data["pairs"]:
        names = iter([pair["first"], pair["second"]])
        for field, heading in COMPARED_FIGURES.items():
            if (figure := pair[field]) is not None:
                cells = ("–" if figure[key] is None else f"{figure[key]:.2f}" for key in ("value", "null", "null_most"))
                table.add_row(escape(next(names, "")), heading, *cells)
        table.add_section()
    return table


def report_command(
    uris: Annotated[
        list[str], typer.Argument(metavar="URI...", help="studies' folders or URIs, e.g. ./results/quickstart")
    ],
    out: Annotated[
        str | None, typer.Option(help="folder or URI of the report; default: `report` in the study's")
    ] = None,
    circuits: Annotated[
        DrawnPages, typer.Option(help="which get pages: those that count, of trials on the front; all; none")
    ] = "front",
) -> int:
    """Write a report of studies: an index.html that opens offline, and pages of circuits."""
    with Show(Console(stderr=True)) as show:
        done = write_report(uris, out, circuits, partial(show.stage, "pages"), on_all_cores)
    say_report(done)
    return 0


def say_report(done: ToldReport) -> None:
    """Where the report is, and what could not be drawn."""
    console = terminal()
    for problem in done.problems[:10]:
        console.print(f"no page of {problem}", markup=False, soft_wrap=True)
    if len(done.problems) > 10:
        console.print(f"and {len(done.problems) - 10} more without a page", markup=False)
    console.print(f"{'report':>9}: {done.address} ({done.pages} pages of circuits)", markup=False, soft_wrap=True)


def study_for(model: str, study: str | None, storage_uri: str | None) -> Study:
    """The study that is named, or that of the model's folder, or the quickstart."""
    own = study_of(model) if study is None else None
    if own is None:
        return load_study(study or "quickstart", storage_uri)
    return own if storage_uri is None else own.model_copy(update={"storage": storage_uri})
