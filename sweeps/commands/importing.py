"""`sweeps import`: a released checkpoint of the paper's authors as a model of our own."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer
from rich.console import Console

from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.openai import load_openai
from sparse_model.saved.pretrained import save_pretrained
from sweeps.show.text import terminal


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
