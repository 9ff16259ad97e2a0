"""Circuits of a trial's model by Ray tasks: one per task of the study, each writing its circuits and giving rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ray

from circuit.tasks import source_name
from sweeps.engine.crashes import is_crash, one_line
from sweeps.study.study import ResourceConfig, Study
from sweeps.trial.outcome import TableRow
from sweeps.trial.places import Trial
from sweeps.trial.settings import settings

TASK_RETRIES = 5
"""Times a pruning task is started again after its process or machine was lost. One that is lost each time (it needs
more memory than there is, say) costs a trial that task's circuits, not the others'."""

LOST = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
)
"""What Ray raises of a task whose process died once more than it may."""


def prune_model(trial: Trial, report: Callable[[int, int], None]) -> list[TableRow]:
    """Circuit rows of every task and target loss. A task whose search raises, or whose process keeps dying, has rows of
    status failed. Whatever ends this early, no search goes on without it."""
    resources = trial.study.resources
    threads = resources.cpus_per_pruning_task
    device = "cuda" if resources.gpus_per_pruning_task else "cpu"
    measured = remote(_summarised, resources).options(num_returns=2)
    known, is_known = measured.remote(trial.model_uri, trial.run.data, resources.cache_bytes, threads, device)
    ray.get(is_known)  # what it raises is no single task's; the summary itself is of tensors, and not for this process
    prune = remote(_pruned, resources).options(name="prune_task")
    sources, config, targets = trial.study.task_sources, settings(trial.study), trial.study.target_losses
    proofs = trial.study.proofs
    rows: dict[str, list[TableRow]] = {}
    names = [source_name(source) for source in sources]
    report(0, len(names))
    for name, outcome in _bounded(
        {
            name: (trial.model_uri, source, config, targets, trial.circuits_uri, threads, known, device, proofs)
            for name, source in zip(names, sources, strict=True)
        },
        prune.remote,
        resources.pruning_parallel,
    ):
        found = _failed(trial.study, name, outcome) if isinstance(outcome, Exception) else outcome
        rows[name] = [{"study": trial.study.name, "trial": trial.key, **row} for row in found]
        report(len(rows), len(names))
    return [row for name in names for row in rows[name]]


def _summarised(*arguments: Any) -> tuple[Any, bool]:
    from sweeps.trial.task_circuits import summarise_published

    return summarise_published(*arguments), True


def _pruned(*arguments: Any) -> list[TableRow]:
    from sweeps.trial.task_circuits import prune_task

    return prune_task(*arguments)


def remote(function: Callable[..., Any], resources: ResourceConfig) -> Any:
    """A pruning task. Its process ends with it where it had a GPU, whose memory it would keep: Ray sees to that if it
    is told of the GPU here, not by `.options`."""
    return ray.remote(**placement(resources))(function)


def placement(resources: ResourceConfig) -> dict[str, Any]:
    """What Ray is asked for each pruning task, anywhere but in the trial's own placement group, which holds the GPUs
    that train it."""
    return {
        "num_cpus": resources.cpus_per_pruning_task,
        "num_gpus": resources.gpus_per_pruning_task,
        "resources": {resources.pruning_resource: resources.cpus_per_pruning_task}
        if resources.pruning_resource
        else {},
        "scheduling_strategy": "SPREAD",
        "max_retries": TASK_RETRIES,
    }


def _failed(study: Study, task: str, error: Exception) -> list[TableRow]:
    common = {"task": task, "status": "failed", "reason": one_line(error)}
    kinds = itertools.product(study.target_losses, study.pruning.methods(task))
    return [common | {"target_loss": target, "method": method} for target, method in kinds]


def _bounded(jobs: dict[str, tuple[Any, ...]], submit: Callable[..., Any], parallel: int) -> Iterator[tuple[str, Any]]:
    """(name, result or what came in its place) of jobs as they end, at most `parallel` at a time.

    A store that is down is no task's fault: that is raised, and the trial tried again. So is what is raised here.
    """
    waiting, running = list(jobs), dict[Any, str]()
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                name = waiting.pop(0)
                running[submit(*jobs[name])] = name
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            name = running.pop(done)
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                if is_crash(error):
                    raise
                outcome = error
            except LOST as error:  # after `TASK_RETRIES`
                outcome = error
            yield name, outcome
    finally:
        for left in running:
            ray.cancel(left, force=True)
