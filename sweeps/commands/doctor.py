"""`sweeps doctor`: is everything there that a study needs?"""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Annotated

import torch
import typer

from sparse_model import storage
from sparse_model.cores import cpu_count
from sparse_model.errors import InputError
from sparse_model.kernels.check import missing_compiler, run_one
from sweeps.engine.session import capacity, capacity_at
from sweeps.show.text import terminal
from sweeps.study.study import load_study

PACKAGES = ("torch", "ray", "optuna", "pyarrow", "duckdb", "tokenizers", "fsspec")


def doctor_command(
    study: Annotated[str, typer.Argument(help="a study file, or the name of a shipped study")] = "quickstart",
    storage_uri: Annotated[
        str | None, typer.Option("--storage", help="folder or URI for results, instead of the study's own")
    ] = None,
    address: Annotated[str | None, typer.Option(help="of a Ray cluster the study is to run on")] = None,
) -> int:
    """Show versions and devices; check that the study is sound, its storage writable, its resources there.

    Exits 2, naming what is wrong, if the study cannot be run here.
    """
    console = terminal()
    console.print(f"python {platform.python_version()} on {platform.platform()}")
    console.print(" · ".join(f"{name} {version(name)}" for name in PACKAGES), soft_wrap=True)
    cpus, gpus = cpu_count(), torch.cuda.device_count()
    devices = [torch.cuda.get_device_name(i) for i in range(gpus)]
    console.print(f"{cpus} CPU core{'s' * (cpus != 1)}; {', '.join(devices) or 'no GPU'}")
    if gpus:
        check_kernels(gpus)
        console.print("kernels: compiled, and right, on every GPU")
    asked = load_study(study, storage_uri)
    console.print(f"study {asked.name}: sound")
    storage.check_writable(asked.storage)
    console.print(f"storage {asked.storage}: writable", soft_wrap=True)
    if address is None:
        fits = capacity(asked.resources, {"CPU": cpus, "GPU": gpus}, can_grow=False)
        console.print(f"resources: {fits.concurrency} of {asked.resources.concurrency} trials at a time fit here")
    else:
        there = capacity_at(address, asked.resources)
        console.print(f"cluster at {address}: {there.cpus:g} CPU cores, {there.gpus:g} GPUs")
        if there.lacking:
            console.print(f"the cluster would have to grow: a trial needs {there.lacking}", soft_wrap=True)
    return 0


def check_kernels(gpus: int) -> None:
    """Compile and run a kernel on each GPU; InputError without the C compiler it takes, or where one fails."""
    if missing_compiler():
        raise InputError("no C compiler in PATH or CC; Triton needs gcc or clang on every machine with a GPU")
    for i in range(gpus):
        try:
            run_one(f"cuda:{i}")
        except Exception as error:  # whatever a driver, a compiler or a kernel may raise
            said = str(error).strip().splitlines() or [""]
            raise InputError(f"GPU {i}: a kernel fails: {type(error).__name__}: {said[0]}") from None
