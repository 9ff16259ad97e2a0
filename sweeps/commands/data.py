"""`sweeps corpus` and `sweeps tokenizer`: look at what models are trained on."""

from __future__ import annotations

from typing import Annotated

import typer

from sparse_model.data.processes import in_processes
from sparse_model.errors import InputError
from sweeps.commands.opening import prepared
from sweeps.commands.options import StorageOption, StudyArgument
from sweeps.engine.tokens import on_ray
from sweeps.show.text import terminal
from sweeps.study.study import load_study


def corpus_command(
    study: StudyArgument = "quickstart",
    storage_uri: StorageOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes that tokenise; one per CPU core if left out")
    ] = None,
    address: Annotated[str | None, typer.Option(help="of a Ray cluster that is to tokenise instead")] = None,
) -> int:
    """Prepare the tokens of a study, if they are not there yet, and say what they are.

    A corpus of more than 32 MB is tokenised in parts, by processes or by a cluster; the bytes are the same.
    Interrupted, the same command goes on with the parts that are missing.
    """
    if workers is not None and address is not None:
        raise InputError("--workers and --address: one of them; a cluster works on as many parts as it has CPU cores")
    console = terminal()
    asked = load_study(study, storage_uri)
    execute = in_processes(workers) if address is None else on_ray(asked.resources, address)
    data = prepared(asked, console, execute)
    for line in data.manifest.described_sources():
        console.print(line, highlight=False, soft_wrap=True)
    for split in ("train", "heldout"):
        part = data.manifest.split(split)
        console.print(
            f"{split}: {part.documents:,} documents, {part.text_bytes / 1e6:.1f} MB, {part.tokens:,} tokens",
            highlight=False,
        )
    console.print(f"dataset: {data.uri}", soft_wrap=True)
    return 0


def tokenizer_command(
    text: Annotated[str, typer.Argument(help="text to show the tokens of")],
    study: Annotated[str, typer.Option(help="whose tokenizer: a study file, or a shipped name")] = "quickstart",
    storage_uri: StorageOption = None,
) -> int:
    """Show how a study's tokenizer cuts a text: one token per line, its id and its text."""
    console = terminal()
    cut = prepared(load_study(study, storage_uri), console).tokenizer
    for token in cut.encode(text):
        console.print(f"{token:>6}  {cut.token_text(token)!r}")
    return 0
