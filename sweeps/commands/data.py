"""`sweeps tasks`, `sweeps corpus` and `sweeps tokenizer`: look at what models are trained on and asked."""

from __future__ import annotations

from textwrap import indent
from typing import Annotated

import typer
from rich.console import Console

from circuit.tasks import TASKS, example
from sparse_model.data.loader import TokenDataset
from sparse_model.data.shards import prepare
from sweeps.progress import Show, StudyProgress
from sweeps.study import Study, load_study
from sweeps.table import terminal

StudyArgument = Annotated[str, typer.Argument(help="a study file, or the name of a shipped study")]
StorageOption = Annotated[
    str | None, typer.Option("--storage", help="folder or URI for results, instead of the study's own")
]


def tasks() -> int:
    """List the tasks, each with a pair of prompts and, after ⟶, what completes them (its first token is the answer)."""
    console = terminal()
    for task in TASKS.values():
        pair = example(task)
        console.print(f"[bold]{task.name}[/bold]  {task.description}")
        for prompt, completion in ((pair.prompt_a, pair.completion_a), (pair.prompt_b, pair.completion_b)):
            console.print(indent(f"{prompt} ⟶ {completion!r}", "    "), markup=False, soft_wrap=True)
            console.print()
    return 0


def corpus(study: StudyArgument = "quickstart", storage_uri: StorageOption = None) -> int:
    """Prepare the tokens of a study, if they are not there yet, and say what they are."""
    console = terminal()
    data = prepared(load_study(study, storage_uri), console)
    for split in ("train", "heldout"):
        part = data.manifest.split(split)
        console.print(
            f"{split}: {part.documents:,} documents, {part.text_bytes / 1e6:.1f} MB, {part.tokens:,} tokens",
            highlight=False,
        )
    console.print(f"dataset: {data.uri}", soft_wrap=True)
    return 0


def tokenizer(
    text: Annotated[str, typer.Argument(help="text to show the tokens of")],
    study: Annotated[str, typer.Option(help="whose tokenizer: a study file, or a shipped name")] = "quickstart",
    storage_uri: StorageOption = None,
) -> int:
    """Show how a study's tokenizer cuts a text: one token per line, its id and its text."""
    console = terminal()
    cut = prepared(load_study(study, storage_uri), console).tokenizer
    for token in cut.encode(text):
        console.print(f"{token:>6}  {cut.token_text(token)!r}", markup=False)
    return 0


def prepared(study: Study, console: Console) -> TokenDataset:
    """The tokens of a study, prepared now if need be, with progress shown."""
    with Show(console) as show:
        return prepare(study.corpus, study.tokenizer, study.storage, StudyProgress(show, study).data)
