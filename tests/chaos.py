"""A cluster of several nodes on this machine, studies that run on it, and ways to hurt both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from ray._private.node import Node
from ray.cluster_utils import Cluster

from sweeps.engine.session import HOLDER, prepare_environment
from sweeps.frontier.queries import Frontier

CLOCK = {"train_seconds", "prune_seconds", "seconds", "finished"}
"""Columns that no two runs share."""

QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 6,
}
"""A lost node is noticed in seconds."""

TINY: dict[str, Any] = {
    "name": "tiny",
    "corpus": {"sources": [{"source": "idioms", "megabytes": 0.5}]},
    "tokenizer": {"vocab_size": 400},
    "tasks": ["else_elif", "bracket_counting", "while_return_true"],
    "trial": {
        "kind": {"choice": ["sparse", "dense"]},
        "model": {"n_layer": 1, "d_head": 16, "context": 96, "d_model": 32, "positions": "learned"},
        "training": {
            "tokens": 300_000,
            "batch_size": 8,
            "min_alive": 1,
            "eval_tokens": 4000,
            "log_every": 1000,  # every report waits for the next poll
            "checkpoint_every": 40,
            "lr": 0.1,
        },
        "sparse": {"training": {"fraction": {"loguniform": [0.2, 0.5]}}},
    },
    "search": {"trials": 2, "startup": 2, "in_flight": 2},
    "resources": {"workers": 2, "concurrency": 2, "pruning_resource": "pruner"},
    "pruning": {"pairs": 16, "steps": 60},
    "target_losses": [0.3],
}
"""Two trials of two workers each."""

WORKER, TRIAL, PRUNING = "RayTrainWorker", "ImplicitFunc", "prune_task"
"""Names of processes: a training worker, a trial's own process, a pruning task."""


class Nodes:
    """A Ray cluster: a head that only holds trials' own processes, and worker nodes of one core each."""

    def __init__(self, count: int = 2) -> None:
        prepare_environment()
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "resources": {HOLDER: 1000},
                "_system_config": QUICK,
            },
        )
        for _ in range(count):
            self.add()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cluster.shutdown()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        self.cluster.add_node(num_cpus=1, resources={"pruner": 1})

    def remove_one_with(self, name: str) -> bool:
        """Take a worker node away on which a process of that name runs; whether there was one."""
        for node in list(self.cluster.worker_nodes):
            if self.processes(name, [node]):
                self._remove(node)
                return True
        return False

    def _remove(self, node: Node) -> None:
        """As a machine that vanishes: nothing on it outlives it."""
        on_it = self.processes("", [node])
        self.cluster.remove_node(node, allow_graceful=False)
        for process in on_it:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def processes(self, name: str, nodes: list[Node] | None = None) -> set[int]:
        """Workers of Ray with `name` in their title, on these nodes or on any."""
        if nodes is None:
            nodes = [*self.cluster.worker_nodes, self.cluster.head_node]
        raylets = {f"RAY_RAYLET_PID={_raylet(node)}".encode() for node in nodes}
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                title = (process / "cmdline").read_bytes()
                if title.startswith(b"ray::") and name.encode() in title:
                    found |= {int(process.name)} if raylets & set(_environment(process)) else set()
        return found

    def kill_one(self, name: str) -> bool:
        """SIGKILL a process of that name; whether there was one."""
        for process in self.processes(name):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
                return True
        return False


def _raylet(node: Node) -> int:
    (raylet,) = node.all_processes["raylet"]
    return int(raylet.process.pid)


def _environment(process: Path) -> list[bytes]:
    return (process / "environ").read_bytes().split(b"\0")


class Driver:
    """`sweeps run` in a process group of its own, and what it has printed."""

    def __init__(self, study: Path, root: str, log: Path, address: str) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sweeps", "run", str(study), "--storage", root, "--address", address],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=log.parent,
            )

    def said(self) -> str:
        return self.log.read_text()

    def till(self, happened: Callable[[], Any], patience: float = 300) -> None:
        """Wait until something has happened; the driver must be alive till then."""
        deadline = time.monotonic() + patience
        while not happened():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def end(self, status: int = 0, patience: float = 240) -> str:
        """Wait for its end; what it said."""
        try:
            ended = self.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {patience:g} s: {self.said()}") from None
        assert ended == status, self.said()
        return self.said()

    def kill(self) -> None:
        """SIGKILL it, if it still runs."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def write_study(path: Path, trials: int) -> Path:
    """The tiny study with that many trials, as a file."""
    path.write_text(yaml.safe_dump(TINY | {"search": TINY["search"] | {"trials": trials}}))
    return path


def rows(root: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of each trial, without what the clock decides."""
    found = Frontier(root)
    together: dict[str, list[dict[str, Any]]] = {}
    for table in (found.trials(), found.circuits()):
        for row in table.to_pylist():
            together.setdefault(row["trial"], []).append({k: v for k, v in row.items() if k not in CLOCK})
    return together
