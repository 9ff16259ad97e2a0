"""Studies whose processes, machines, drivers and storage fail: the rows are those of an undisturbed run."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
import soak
from chaos import PRUNING, TRIAL, WORKER, Driver, Nodes, rows, write_study
from faulty_proxy import FaultyProxy, one_in_ten

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

ACCESS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}

Start = Callable[..., Driver]


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
def undisturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Both trials, run in one go: where they are, and how many training workers there ever were at a time."""
    folder = tmp_path_factory.mktemp("undisturbed")
    driver = Driver(write_study(folder / "tiny.yaml", 2), str(folder), folder / "log", nodes.address)
    most = 0
    try:
        while driver.process.poll() is None:
            most = max(most, len(nodes.processes(WORKER)))
            time.sleep(0.1)
        driver.end()
    finally:
        driver.kill()
    return folder, most


def first_trial(folder: Path) -> dict[str, object]:
    found = rows(str(folder / "tiny"))
    key = min(found)
    return {key: found[key]}


def checkpoint(root: Path) -> Callable[[], set[Path]]:
    """Whether there is a complete checkpoint that was not there before."""
    pattern = "tiny/ray/train/*/checkpoints/step-*/manifest.json"
    before = set(root.glob(pattern))
    return lambda: set(root.glob(pattern)) - before


def test_two_trials_whose_workers_do_not_fit_together_run_one_after_the_other(undisturbed: tuple[Path, int]) -> None:
    folder, most = undisturbed
    found = rows(str(folder / "tiny"))
    assert [trial[0]["status"] for trial in found.values()] == ["ok", "ok"]
    assert any("task" in row and row["status"] == "ok" for trial in found.values() for row in trial), "nothing to prune"
    assert most == 2, "workers of both trials held cores at a time"


def test_lost_workers_trials_and_machines_change_nothing(
    nodes: Nodes, start: Start, undisturbed: tuple[Path, int], tmp_path: Path
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
    assert rows(str(tmp_path / "tiny")) == first_trial(undisturbed[0])


def test_one_driver_at_a_time_and_the_next_goes_on(start: Start, undisturbed: tuple[Path, int], tmp_path: Path) -> None:
    first = start(str(tmp_path))
    first.till(checkpoint(tmp_path))
    (refusal,) = start(str(tmp_path)).end(status=2).splitlines()[1:]
    assert f"pid {first.process.pid} on {os.uname().nodename}, since 2" in refusal
    first.kill()
    said = start(str(tmp_path)).end()
    assert "taking over from a driver that is gone" in said
    assert rows(str(tmp_path / "tiny")) == first_trial(undisturbed[0])


def test_an_outage_of_the_storage_is_waited_out(
    start: Start, undisturbed: tuple[Path, int], s3_server: str, tmp_path: Path
) -> None:
    """Down altogether while training, then for the trial's row alone: until that is written nothing has finished."""
    bucket = f"b-{uuid4().hex}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=bucket)

    def is_row(method: str, path: str) -> bool:
        return method == "PUT" and "/frontier/trials/" in path

    with FaultyProxy(s3_server) as proxy:
        root = f"s3://{bucket}/here?endpoint_override={proxy.address}"
        driver = start(root)
        driver.till(lambda: any("checkpoints/step-" in path for _, path, _ in list(proxy.requests)))
        proxy.plan = lambda method, path, number: 503
        time.sleep(8)
        refused = sum(fault == 503 for *_, fault in list(proxy.requests))
        proxy.plan = lambda method, path, number: 503 if is_row(method, path) else None
        driver.till(lambda: sum(is_row(method, path) for method, path, _ in list(proxy.requests)) >= 2)
        assert " ok: " not in driver.said()
        proxy.plan = lambda method, path, number: None
        driver.end()
        assert refused, "nobody asked for anything while the storage was down"
        found = rows(f"s3://{bucket}/here/tiny?endpoint_override={proxy.address}")
    assert found == first_trial(undisturbed[0])


def test_one_request_in_ten_fails_while_processes_die(
    nodes: Nodes, start: Start, undisturbed: tuple[Path, int], s3_server: str
) -> None:
    bucket = f"b-{uuid4().hex}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=bucket)
    with FaultyProxy(s3_server, one_in_ten(random.Random(7))) as proxy:

        def kept_more() -> Callable[[], bool]:
            before = len(proxy.requests)
            return lambda: any(
                method == "PUT" and path.endswith("manifest.json") and not fault
                for method, path, fault in proxy.requests[before:]
            )

        root = f"s3://{bucket}/here?endpoint_override={proxy.address}"
        driver = start(root)
        for process in (WORKER, TRIAL):
            driver.till(kept_more())
            driver.till(lambda process=process: nodes.kill_one(process))  # type: ignore[misc]
        driver.till(kept_more())
        driver.kill()
        start(root).end()
        faults = {fault for *_, fault in proxy.requests}
    assert len(faults) > 4, faults
    assert rows(f"s3://{bucket}/here/tiny?endpoint_override={s3_server}") == first_trial(undisturbed[0])


def test_a_short_soak(
    nodes: Nodes, undisturbed: tuple[Path, int], s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = boto3.client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket="bucket")
    expected = first_trial(undisturbed[0])
    with FaultyProxy(s3_server) as proxy:
        study = write_study(tmp_path / "tiny.yaml", 1)
        case = soak.Soak(study, nodes, proxy, outage=3, random=random.Random(4), per_round=2)
        assert soak.soak(case, expected, seconds=0) == 0
        monkeypatch.setattr(soak, "disturbed", lambda *_: None)
        assert soak.soak(case, {"another": []}, seconds=0) == 1, "it would not notice"
