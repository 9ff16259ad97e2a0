"""Starting Ray, quietly: a small one of our own on this machine, or a connection to a cluster."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sparse_model.cores import cpu_count
from sparse_model.errors import InputError
from sweeps.study.study import ResourceConfig

CONNECT_SECONDS = 10.0
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
    "RAY_task_oom_retries": "5",  # for ever by default: of a task that needs more memory than there is
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our rows are the record
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # reports of progress carry no objective
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # and its cost grows with the number of trials
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the study; the same command resumes it
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "600",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
}


_OWN = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody reclaims this machine
    "RAY_TRAIN_METRICS_ENABLED": "0",  # nobody looks at them; a cluster's dashboard does
}
"""Of a Ray of our own, and so of all of its processes."""

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

    if address is None:
        check_temporary_folder()
    try:
        if address is None:
            for name, value in _OWN.items():
                os.environ.setdefault(name, value)
            ray.init(
                address="local",  # not a cluster of somebody else's that happens to run on this machine
                num_cpus=own_cores(),
                resources={HOLDER: 1000} | own_resources(resources),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"address {address or 'of this machine'}: Ray cannot start or be reached ({error})") from None
    try:
        yield capacity(resources, ray.cluster_resources(), can_grow=address is not None, nodes=_nodes())
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
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"address {address}: no Ray there ({error}); allowed: auto on the cluster, or its head's <host>:<port>"
        ) from None


def check_temporary_folder() -> None:
    """Ray's files go where we may write; InputError with a remedy where they belong to another user of the machine."""
    parent = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    place = parent / "ray" if os.path.exists(parent / "ray") else parent  # no, where it cannot be looked at
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{place}: belongs to {_owner(place)}, and Ray's files are to go there; "
            "set RAY_TMPDIR to a folder of your own with a short name, e.g. export RAY_TMPDIR=$HOME/tmp"
        )


def _owner(path: Path) -> str:
    try:
        return f"user {path.owner()}"
    except (KeyError, OSError):
        return "another user"


def capacity_at(address: str, resources: ResourceConfig) -> Capacity:
    """What the trials of a study run on at an address; InputError where no cluster can be reached."""
    prepare_environment()
    check_answers(address)
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"address {address}: Ray cannot be reached ({error})") from None
    try:
        return capacity(resources, ray.cluster_resources(), can_grow=True, nodes=_nodes())
    finally:
        ray.shutdown()


def _nodes() -> list[dict[str, float]]:
    """What each living machine of the cluster has in all."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def capacity(
    resources: ResourceConfig,
    offered: dict[str, float],
    *,
    can_grow: bool,
    nodes: Sequence[Mapping[str, float]] = (),
) -> Capacity:
    """How many trials fit what Ray offers, in all and on each of its machines (`nodes`, where they are known);
    InputError if not even one does and the cluster cannot grow."""
    cpus, gpus = offered.get("CPU", 0.0), offered.get("GPU", 0.0)
    needed_gpus = resources.gpus
    holder = {HOLDER: 1.0} if HOLDER in offered else {"CPU": 0.01}
    if can_grow:
        lacks = lacking(resources, offered) or not_on_one(resources, nodes)
        return Capacity(cpus, gpus, lacks, holder, resources.concurrency)
    for name, needed, there in (("CPU cores", resources.cpus, cpus), ("GPUs", needed_gpus, gpus)):
        if needed > there:
            raise InputError(f"resources: a trial needs {needed:g} {name}, this machine has {there:g}")
    fitting = int(min(cpus / resources.cpus, gpus / needed_gpus if needed_gpus else cpus))
    return Capacity(cpus, gpus, "", holder, min(resources.concurrency, fitting))


def own_resources(resources: ResourceConfig) -> dict[str, int]:
    """What a Ray of our own calls its cores for a study that prunes on nodes of their own: here all are one node's."""
    return {resources.pruning_resource: own_cores()} if resources.pruning_resource else {}


def own_cores() -> int:
    """Cores of a Ray of our own: no more than it counts itself, and than this process may use."""
    from ray._private.utils import get_num_cpus

    return max(1, min(cpu_count(), int(get_num_cpus())))


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


def not_on_one(resources: ResourceConfig, nodes: Sequence[Mapping[str, float]]) -> str:
    """What has to be on one machine, and no machine of a cluster can hold, in words; empty where there is nothing.

    Two machines of four cores have eight, and none for a worker of eight: Ray would wait for ever, and say nothing.
    """
    found = []
    for what, bundle in resources.bundles.items():
        needed = {name: amount for name, amount in bundle.items() if amount}
        if nodes and not any(all(node.get(name, 0) >= n for name, n in needed.items()) for node in nodes):
            wanted = " and ".join(f"{amount:g} {name}" for name, amount in needed.items())
            most = ", ".join(f"{max(node.get(name, 0) for node in nodes):g} {name}" for name in needed)
            found.append(f"{wanted} on one machine for {what} (the most on one: {most})")
    return ", ".join(found)


def prepare_environment() -> None:
    """Settle what Ray and its processes inherit; to be called before anything of Ray is used."""
    for name, value in (_QUIET | _MEMORY).items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    logging.getLogger("ray").setLevel(logging.ERROR)
