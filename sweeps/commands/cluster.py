"""`sweeps plan`, `sweeps submit` and `sweeps status`: a study before, on, and beside a cluster."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Literal

import typer

from sparse_model.errors import InputError
from sweeps.commands.folder import disk_lines
from sweeps.commands.options import PruneAgainOption, RetryOption, StorageOption, StudyArgument
from sweeps.engine import submission
from sweeps.engine.upload import check_travels, job_environment
from sweeps.show import planning
from sweeps.show.disk import disk_use
from sweeps.show.status import ago, short, study_status
from sweeps.show.text import terminal
from sweeps.study.study import load_study

PriceOption = Annotated[float | None, typer.Option(min=0, help="of one device for an hour, in any currency")]
TextOrJson = Annotated[Literal["text", "json"], typer.Option("--format", help="of the answer on standard output")]


def plan_command(
    study: StudyArgument = "quickstart",
    storage_uri: StorageOption = None,
    flops: Annotated[float | None, typer.Option(min=1, help="training FLOP/s that one device sustains")] = None,
    prune_seconds: Annotated[float | None, typer.Option(min=0, help="seconds per circuit, on its cores")] = None,
    like: Annotated[
        str | None, typer.Option(help="take both from the rows of a finished study at this folder or URI")
    ] = None,
    price: PriceOption = None,
    form: TextOrJson = "text",
) -> int:
    """Say what a study will take before anything is spent: trials, FLOPs, device hours, storage, the cluster it needs.

    \b
    sweeps plan quickstart
    sweeps plan paper.yaml --flops 4e14 --price 2.50
    sweeps plan bigger.yaml --like s3://bucket/results/smaller
    """
    if like is not None and (flops is not None or prune_seconds is not None):
        raise InputError("--like and --flops or --prune-seconds: one of them")
    asked = load_study(study, storage_uri)
    speed = (
        planning.measured_throughput(like, asked)
        if like is not None
        else planning.assumed_throughput(asked, flops, prune_seconds)
    )
    found = planning.plan_study(asked, speed)
    if form == "json":
        print(json.dumps(dataclasses.asdict(found) | {"throughput": dataclasses.asdict(speed)}, indent=1))
        return 0
    resources = asked.resources
    device = resources.device_name
    at_once = min(resources.concurrency, asked.search.in_flight * len(asked.seeds), found.trials)
    cores = at_once * resources.pruning_parallel * resources.cpus_per_pruning_task
    gpus = at_once * resources.pruning_parallel * resources.gpus_per_pruning_task
    sharing = f" and {gpus:g} GPUs" if gpus else ""
    worker = "GPU" if resources.gpus_per_worker else "worker"
    fewer = " (training.micro_batch; where a GPU has less, training takes fewer)" if worker == "GPU" else ""
    lines = {
        "trials": f"{found.trials:,} ({asked.search.trials:,} configurations × {len(asked.seeds)} seeds), "
        f"{len(asked.task_sources)} tasks × {len(asked.target_losses)} target losses each",
        "parameters": f"{found.parameters[0]:,} to {found.parameters[1]:,} per model",
        "training": f"{found.tokens:.3g} tokens, {found.flops:.3g} FLOPs",
        "throughput": f"{speed.flops:.3g} FLOP/s per {device}, {speed.prune_seconds:g} seconds per circuit "
        f"({speed.source})",
        "devices": f"training {found.device_hours:,.2f} {device} hours; pruning "
        f"{_pruning(found.prune_core_hours, found.prune_gpu_hours)}",
        "wall clock": f"about {found.hours:,.2f} hours with {at_once} trials at a time",
        "cluster": f"{at_once * resources.devices:g} {device}s for training, and {cores} cores{sharing} for pruning",
        "memory": f"{found.memory.gb:,.2f} GB per {worker} in training, at most: {found.memory.state_gb:,.2f} for "
        f"weights, gradients and moments, {found.memory.activations_gb:,.2f} for activations of "
        f"{found.memory.micro_batch} sequences at a time{fewer}",
        "sampler": f"told {asked.unsolved_edges:,} edges of a task without a circuit that counts",
        "storage": f"{found.storage_gb:,.3g} GB, and up to {found.peak_checkpoint_gb:,.3g} GB of checkpoints meanwhile",
    }
    if price is not None:
        lines["cost"] = _cost(price, device, found.device_hours, found.prune_core_hours, found.prune_gpu_hours)
    for name, text in lines.items():
        terminal().print(f"{name:>11}: {text}", soft_wrap=True)
    return 0


def _pruning(core_hours: float, gpu_hours: float) -> str:
    return f"{core_hours:,.3g} core hours" + (f" and {gpu_hours:,.3g} GPU hours" if gpu_hours else "")


def _cost(price: float, device: str, training: float, cores: float, gpus: float) -> str:
    """Training and pruning apart, of the devices that have a price: those that train."""
    pruning = gpus if device == "GPU" else cores
    total = price * (training + pruning)
    return (
        f"{total:,.2f} at {price:g} per {device} hour: {price * training:,.2f} of training, "
        f"{price * pruning:,.2f} of pruning"
    )


def submit_command(
    study: StudyArgument,
    address: Annotated[str, typer.Option(help="of the cluster's dashboard, e.g. http://127.0.0.1:8265")],
    storage_uri: StorageOption = None,
    working_dir: Annotated[str, typer.Option(help="folder to upload: this project")] = ".",
    retry_failed: RetryOption = False,
    prune_again: PruneAgainOption = False,
    env: Annotated[
        list[str] | None, typer.Option(help="environment variable of the job: NAME=value, or NAME as here; repeatable")
    ] = None,
    wait: Annotated[bool, typer.Option(help="follow the log to the end; without, print the job's id")] = True,
) -> int:
    """Run a study on a cluster as a Ray job and follow its log. Submitting it again resumes it.

    Files that the study names must be in the folder that is uploaded, or in an object store: others are refused here.
    Exits as the study did: 0 only if the job succeeded, 1 if it was stopped. Ctrl-C stops following, not the job.
    """
    asked = submission.check_shared(study, storage_uri)
    check_travels(study, asked, working_dir)
    environment = job_environment(env or [])
    asked_again = {"--retry-failed": retry_failed, "--prune-again": prune_again}
    flags = [flag for flag, is_on in asked_again.items() if is_on]
    command = submission.entrypoint(study, storage_uri, working_dir, flags)
    client, job = submission.start_job_at(address, command, working_dir, environment)
    console = terminal()
    console.print(f"job {job}: {command}", soft_wrap=True)
    if not wait:
        return 0
    try:
        return submission.follow_job(client, job, lambda text: console.print(text, soft_wrap=True))
    except KeyboardInterrupt:
        console.print(f"job {job} goes on; stop it with: ray job stop {job} --address {address}", soft_wrap=True)
        raise


def status_command(
    uri: Annotated[str, typer.Argument(help="a study's folder or URI, e.g. s3://bucket/results/quickstart")],
    price: PriceOption = None,
    disk: Annotated[bool, typer.Option("--disk", help="and what its folder holds, in files and bytes")] = False,
    form: TextOrJson = "text",
) -> int:
    """Say where a study stands: trials by state, rate, time left, cost so far. It may run anywhere, or nowhere."""
    found = study_status(uri)
    if form == "json":
        used = {"disk": {name: dataclasses.asdict(use) for name, use in disk_use(uri).items()}} if disk else {}
        print(json.dumps(dataclasses.asdict(found) | used, indent=1, default=str))
        return 0
    counts = ", ".join(f"{count} {name}" for name, count in sorted(found.by_status.items(), key=lambda pair: -pair[1]))
    last = f"last {ago(found.last_finished)}" if found.last_finished else "none yet"
    rate = f"{found.per_hour:.3g} trials per hour" if found.per_hour else "unknown until two trials have finished"
    left = short(found.left) if found.left is not None else "unknown"
    lines = {
        "trials": f"{found.done} of {found.trials} finished ({100 * found.done / found.trials:.0f} %; {last})",
        "states": ", ".join(filter(None, (counts, f"{found.begun} begun without a row" if found.begun else ""))) or "–",
        "rate": rate,
        "time left": left if found.done < found.trials else "none",
        "training": f"{found.device_hours:,.3g} {found.device} hours so far, {found.flops:.3g} FLOPs",
        "pruning": f"{_pruning(found.prune_core_hours, found.prune_gpu_hours)} so far; "
        f"{found.prune_hours:,.3g} hours of trials' time",
    }
    if price is not None:
        lines["cost"] = _cost(price, found.device, found.device_hours, found.prune_core_hours, found.prune_gpu_hours)
    if disk:
        lines |= disk_lines(uri)
    terminal().print(f"study {found.study}")
    width = max(map(len, lines))
    for name, text in lines.items():
        terminal().print(f"{name:>{width}}: {text}", soft_wrap=True)
    return 0
