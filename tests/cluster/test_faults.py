"""Studies whose processes, machines, drivers and storage fail: the rows are those of an undisturbed run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import chaos
import hosts
import pytest
import soak
import yaml
from chaos import PRUNING, TRIAL, WORKER, Driver, Nodes, rows, write_study
from faulty_proxy import FaultyProxy, one_in_ten, sound

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ACCESS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}

Start = Callable[..., Driver]
Rows = dict[str, list[dict[str, Any]]]

OUTAGE = 8.0
"""Seconds for which the storage is down; `soak.py` takes it away for a minute."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Room for one gang of two training workers; whatever runs there has access to the S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ACCESS.items():
            patch.setenv(name, value)
        with Nodes(2) as cluster:
            yield cluster


@pytest.fixture
def start(nodes: Nodes, tmp_path: Path) -> Iterator[Start]:
    """Start a driver on the cluster."""
    drivers: list[Driver] = []

    def start_one(root: str, trials: int = 1) -> Driver:
        study = write_study(tmp_path / "tiny.yaml", trials)
        drivers.append(Driver(study, root, tmp_path / f"log-{len(drivers)}", nodes.address))
        return drivers[-1]

    yield start_one
    for driver in drivers:
        driver.kill()


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The rows of one trial to which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed")
    driver = Driver(write_study(folder / "tiny.yaml", 1), str(folder), folder / "log", nodes.address)
    try:
        driver.end()
    finally:
        driver.kill()
    found = rows(str(folder / "tiny"))
    ((trial, *circuits),) = found.values()
    assert trial["status"] == "ok"
    assert any(circuit["status"] == "ok" for circuit in circuits), "nothing to prune"
    return found


@pytest.fixture
def bucket(s3_server: str) -> str:
    """Its name."""
    name = f"b-{uuid4().hex}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=name)
    return name


def checkpoint(root: Path) -> Callable[[], set[Path]]:
    """Whether there is a complete checkpoint that was not there before."""
    pattern = "tiny/ray/train/*/checkpoints-*/step-*/manifest.json"
    before = set(root.glob(pattern))
    return lambda: set(root.glob(pattern)) - before


def checkpoint_sent(proxy: FaultyProxy) -> Callable[[], bool]:
    """Whether a checkpoint has been completed since."""
    before = len(proxy.requests)
    return lambda: any(
        method == "PUT" and path.endswith("manifest.json") and not fault
        for method, path, fault in proxy.requests[before:]
    )


def test_lost_workers_trials_and_machines_change_nothing(
    nodes: Nodes, start: Start, undisturbed: Rows, tmp_path: Path
) -> None:
    driver = start(str(tmp_path))
    for fault in (
        lambda: nodes.kill_one(WORKER),
        lambda: nodes.kill_one(TRIAL),
        lambda: nodes.remove_one_with(WORKER),
    ):
        driver.till(checkpoint(tmp_path))
        driver.till(fault)
    nodes.add()
    driver.till(lambda: nodes.remove_one_with(PRUNING))
    nodes.add()
    said = driver.end()
    assert said.count(" started: ") == 2, "the trial's process was not replaced"
    assert rows(str(tmp_path / "tiny")) == undisturbed


def test_one_driver_at_a_time_and_the_next_goes_on_through_an_outage_of_the_storage(
    start: Start, undisturbed: Rows, s3_server: str, bucket: str
) -> None:
    """Down altogether while training, then for the trial's row alone: until that is written nothing has finished."""

    def is_row(method: str, path: str) -> bool:
        return method == "PUT" and "/frontier/trials/" in path

    with FaultyProxy(s3_server) as proxy:
        root = f"s3://{bucket}/here?endpoint_override={proxy.address}"
        first = start(root)
        first.till(checkpoint_sent(proxy))
        (refusal,) = start(root).end(status=2).splitlines()[1:]
        assert f"pid {first.process.pid} on {os.uname().nodename}, since 2" in refusal
        first.kill()
        second = start(root)
        second.till(checkpoint_sent(proxy))
        proxy.plan = lambda method, path, number: 503
        time.sleep(OUTAGE)
        refused = sum(fault == 503 for *_, fault in list(proxy.requests))
        proxy.plan = lambda method, path, number: 503 if is_row(method, path) else None
        second.till(lambda: sum(is_row(method, path) for method, path, _ in list(proxy.requests)) >= 2)
        assert " ok: " not in second.said()
        proxy.plan = sound
        said = second.end()
    assert "taking over from a driver that is gone" in said
    assert refused, "nobody asked for anything while the storage was down"
    assert rows(f"s3://{bucket}/here/tiny?endpoint_override={s3_server}") == undisturbed


@pytest.mark.faults
def test_drivers_and_tasks_killed_during_pruning_search_nothing_twice(
    nodes: Nodes, start: Start, undisturbed: Rows, tmp_path: Path
) -> None:
    """Every search writes its circuits once: what had ended when the driver, the trial or a task was killed stays."""

    def stored() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("tiny/circuits/*/*.json")}

    driver = start(str(tmp_path))
    driver.till(stored)
    first = stored()
    driver.kill()
    driver = start(str(tmp_path))
    driver.till(lambda: nodes.processes(PRUNING))
    model = next(tmp_path.glob("tiny/models/*/model.safetensors"))
    published = model.stat().st_mtime_ns
    for process in (PRUNING, TRIAL):
        if driver.process.poll() is None and nodes.processes(process):
            nodes.kill_one(process)
            time.sleep(1)
    driver.end()
    last = stored()
    assert {path: last[path] for path in first} == first, "searched again"
    assert model.stat().st_mtime_ns == published, "trained again"
    assert rows(str(tmp_path / "tiny")) == undisturbed


@pytest.mark.faults
def test_two_trials_whose_workers_do_not_fit_together_run_one_after_the_other(
    nodes: Nodes, start: Start, undisturbed: Rows, tmp_path: Path
) -> None:
    driver = start(str(tmp_path), trials=2)
    most = 0
    while driver.process.poll() is None:
        most = max(most, len(nodes.processes(WORKER)))
        time.sleep(0.1)
    driver.end()
    found = rows(str(tmp_path / "tiny"))
    assert [trial[0]["status"] for trial in found.values()] == ["ok", "ok"]
    assert undisturbed.items() <= found.items()
    assert most == 2, "workers of both trials held cores at a time"


@pytest.mark.faults
def test_one_request_in_ten_fails_while_processes_die(
    nodes: Nodes, start: Start, undisturbed: Rows, s3_server: str, bucket: str
) -> None:
    with FaultyProxy(s3_server, one_in_ten(random.Random(7))) as proxy:
        root = f"s3://{bucket}/here?endpoint_override={proxy.address}"
        driver = start(root)
        for process in (WORKER, TRIAL):
            driver.till(checkpoint_sent(proxy))
            driver.till(lambda process=process: nodes.kill_one(process))  # type: ignore[misc]
        driver.till(checkpoint_sent(proxy))
        driver.kill()
        start(root).end()
        faults = {fault for *_, fault in proxy.requests}
    assert len(faults) > 4, faults
    assert rows(f"s3://{bucket}/here/tiny?endpoint_override={s3_server}") == undisturbed


@pytest.mark.faults
def test_a_short_soak(
    nodes: Nodes, undisturbed: Rows, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket="bucket")
    with FaultyProxy(s3_server) as proxy:
        study = write_study(tmp_path / "tiny.yaml", 1)
        case = soak.Soak(study, nodes, proxy, outage=3, random=random.Random(4), per_round=2)
        assert soak.soak(case, dict(undisturbed), seconds=0) == 0
        monkeypatch.setattr(soak, "disturbed", lambda *_: None)
        assert soak.soak(case, {"another": []}, seconds=0) == 1, "it would not notice"


@pytest.mark.faults
@pytest.mark.skipif(not hosts.can_be_made(), reason="no network namespaces here")
def test_a_sharded_model_on_two_hosts_is_that_of_one(tmp_path: Path) -> None:
    """FSDP over a wire, the driver, a worker and pruning on one host, the other worker on another: the same rows."""
    content = chaos.TINY | {"resources": {"workers": 2, "parallel": "fsdp", "concurrency": 1}}
    content |= {"search": chaos.TINY["search"] | {"trials": 1}, "report": "none"}
    study = tmp_path / "tiny.yaml"
    study.write_text(yaml.safe_dump(content))
    ray, python = str(Path(sys.executable).with_name("ray")), sys.executable
    quiet = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "test-only", "OMP_NUM_THREADS": "1"}
    roots = {name: tmp_path / name for name in ("one", "two")}
    with hosts.Hosts(2, tmp_path / "hosts") as two:
        address = f"{two.addresses[0]}:6379"
        common = ["--block", "--num-cpus=1", "--disable-usage-stats", "--object-store-memory=100000000"]
        where = [f"--node-ip-address={own}" for own in two.addresses]
        holder = '--resources={"trial_holder": 9}'
        head = ["start", "--head", "--port=6379", "--include-dashboard=false", holder, where[0], *common]
        for host, words in enumerate((head, ["start", f"--address={address}", where[1], *common])):
            log = tmp_path / f"host-{host}.log"
            started = two.start(host, [ray, *words], log, quiet)
            while "Ray runtime started" not in log.read_text():
                assert started.poll() is None, log.read_text()
                time.sleep(0.5)
        command = [python, "-m", "sweeps", "run", str(study), "--storage", str(roots["two"]), "--address", address]
        driver = two.start(0, command, tmp_path / "log", quiet)
        seen: set[str] = set()
        while driver.poll() is None:
            seen |= two.where(WORKER)
            time.sleep(0.3)
        assert driver.returncode == 0, (tmp_path / "log").read_text()
        assert len(seen) == 2, "both workers were on one host"
    alone = [python, "-m", "sweeps", "run", str(study), "--storage", str(roots["one"])]
    done = subprocess.run(alone, capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(str(roots["two"] / "tiny")) == rows(str(roots["one"] / "tiny"))
