"""`sweeps circuit page`, `sweeps circuit compare` and `sweeps report`: files to look at."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from circuit.graph import Circuit
from circuit.pages import Notes
from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.commands.data import StorageOption
from sweeps.commands.one import opened_with_text
from sweeps.pages.one_circuit import CONTEXT_WINDOWS, drawn, study_of
from sweeps.pages.report import Report, write_report
from sweeps.progress import Show
from sweeps.study import Study, load_study
from sweeps.table import terminal

TextOption = Annotated[
    str | None,
    typer.Option("--study", help="whose text and prompts: a file or a shipped name; default: the model's own"),
]


def page(
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


def report(
    uris: Annotated[
        list[str], typer.Argument(metavar="URI...", help="studies' folders or URIs, e.g. ./results/quickstart")
    ],
    out: Annotated[
        str | None, typer.Option(help="folder or URI of the report; default: `report` in the study's")
    ] = None,
    circuits: Annotated[str, typer.Option(help="of which trials circuits get pages: front, all or none")] = "front",
) -> int:
    """Write a report of studies: an index.html that opens offline, and pages of circuits."""
    if circuits not in ("front", "all", "none"):
        raise InputError(f"--circuits {circuits!r}; allowed: front, all, none")
    with Show(Console(stderr=True)) as show:
        done = write_report(uris, out, circuits, lambda share, words: show.stage("pages", share, words))  # type: ignore[arg-type]
    say_report(done)
    return 0


def say_report(done: Report) -> None:
    """Where the report is, and what could not be drawn."""
    console = terminal()
    for problem in done.problems[:10]:
        console.print(f"no page of {problem}", markup=False, soft_wrap=True)
    if len(done.problems) > 10:
        console.print(f"and {len(done.problems) - 10} more without a page", markup=False)
    console.print(f"{'report':>9}: {done.index} ({done.pages} pages of circuits)", markup=False, soft_wrap=True)


def study_for(model: str, study: str | None, storage_uri: str | None) -> Study:
    """The study that is named, or that of the model's folder, or the quickstart."""
    own = study_of(model) if study is None else None
    if own is None:
        return load_study(study or "quickstart", storage_uri)
    return own if storage_uri is None else own.model_copy(update={"storage": storage_uri})
