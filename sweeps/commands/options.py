"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from sparse_model.errors import InputError

StudyArgument = Annotated[str, typer.Argument(help="a study file, or the name of a shipped study")]
StorageOption = Annotated[
    str | None, typer.Option("--storage", help="folder or URI for results, instead of the study's own")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:<number>; default: a GPU where torch sees one")
]


def device_named(name: str | None) -> torch.device:
    """The device of a name; without one, a GPU where there is one. InputError for one that is not here."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if name is not None and name not in here:
        raise InputError(f"--device {name!r}; allowed: {', '.join(here)}{'' if gpus else ' (torch sees no GPU)'}")
    return torch.device(name or ("cuda" if gpus else "cpu"))


RetryOption = Annotated[bool, typer.Option(help="run trials again that failed before")]
PruneAgainOption = Annotated[
    bool,
    typer.Option(
        "--prune-again",
        help="search again in trained models whose circuits another version's search found",
    ),
]
