"""Starting Ray, quietly: a small one of our own on this machine, or a connection to a cluster."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sparse_model.cores import cpu_count
from sparse_model.errors import InputError
from sweeps.study.study import ResourceConfig

ANSWER_SECONDS = 10.0
"""Seconds in which the head of a cluster has to answer."""
OBJECT_STORE_BYTES = 200_000_000
"""Of our own Ray: only means, rows and configurations pass through it."""

HOLDER = "trial_holder"
"""Resource of the node on which trials' own processes (not their workers) are placed; absent: a little of any CPU."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Of a Ray of our own, and of a driver. The thread outlives a process's second session, and where it reports while
    # an exit takes down what it uses, a study that has ended well ends with a segmentation fault (Ray 2.60).
    "RAY_enable_metrics_collection": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PYTHON worker processes have been started",  # a trial has several, mostly asleep
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our rows are the record
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # reports of progress carry no objective
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # and its cost grows with the number of trials
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the study; the same command resumes it
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "600",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
}


_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""Keep large freed blocks instead of giving them back at every step: a tenth off a training step on CPU."""


@dataclass(frozen=True)
class Capacity:
    """What the trials of a study run on."""

    cpus: float
    gpus: float
    lacking: str
    holder: dict[str, float]
    concurrency: int


@contextmanager
def ray_session(resources: ResourceConfig, address: str | None) -> Iterator[Capacity]:
    """Ray, up while the context lasts; InputError where it cannot be reached or is too small for one trial."""
    prepare_environment()
    check_answers(address)
    import ray

    try:
        if address is None:
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody reclaims this machine
            ray.init(
                address="local",  # not a cluster of somebody else's that happens to run on this machine
                num_cpus=cpu_count(),
                resources={HOLDER: 1000} | own_resources(resources),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"address {address or 'of this machine'}: Ray cannot start or be reached ({error})") from None
    try:
        yield capacity(resources, ray.cluster_resources(), can_grow=address is not None)
    finally:
        ray.shutdown()


def check_answers(address: str | None) -> None:
    """InputError where nobody listens at an address `host:port`, for which Ray itself would wait for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:  # none, or a word of Ray's own such as auto
        return
    try:
        if not port.isdigit():
            raise OSError(f"no port {port!r}")
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"address {address}: no Ray there ({error}); allowed: auto on the cluster, or its head's <host>:<port>"
        ) from None


def offered_at(address: str) -> dict[str, float]:
    """What the cluster at an address has in all, by name of resource; InputError where it cannot be reached."""
    prepare_environment()
    check_answers(address)
    import ray

    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"address {address}: Ray cannot be reached ({error})") from None
    try:
        return dict(ray.cluster_resources())
    finally:
        ray.shutdown()


def capacity(resources: ResourceConfig, offered: dict[str, float], *, can_grow: bool) -> Capacity:
    """How many trials fit what Ray offers; InputError if not even one does and the cluster cannot grow."""
    cpus, gpus = offered.get("CPU", 0.0), offered.get("GPU", 0.0)
    needed_gpus = resources.gpus
    holder = {HOLDER: 1.0} if HOLDER in offered else {"CPU": 0.01}
    if can_grow:
        return Capacity(cpus, gpus, lacking(resources, offered), holder, resources.concurrency)
    for name, needed, there in (("CPU cores", resources.cpus, cpus), ("GPUs", needed_gpus, gpus)):
        if needed > there:
            raise InputError(f"resources: a trial needs {needed:g} {name}, this machine has {there:g}")
    fitting = int(min(cpus / resources.cpus, gpus / needed_gpus if needed_gpus else cpus))
    return Capacity(cpus, gpus, "", holder, min(resources.concurrency, fitting))


def own_resources(resources: ResourceConfig) -> dict[str, int]:
    """What a Ray of our own calls its cores for a study that prunes on nodes of their own: here all are one node's."""
    return {resources.pruning_resource: cpu_count()} if resources.pruning_resource else {}


def lacking(resources: ResourceConfig, offered: Mapping[str, float]) -> str:
    """What a trial needs and a cluster does not have as it is, in words; empty where there is nothing."""
    needed = {"CPU": resources.cpus, "GPU": resources.gpus}
    if resources.pruning_resource:
        needed[resources.pruning_resource] = resources.cpus_per_pruning_task
    return ", ".join(
        f"{count:g} {name} (there: {offered.get(name, 0):g})"
        for name, count in needed.items()
        if count > offered.get(name, 0)
    )


def prepare_environment() -> None:
    """Settle what Ray and its processes inherit; to be called before anything of Ray is used."""
    for name, value in (_QUIET | _MEMORY).items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    logging.getLogger("ray").setLevel(logging.ERROR)
