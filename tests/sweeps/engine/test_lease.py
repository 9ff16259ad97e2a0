"""One driver per study, whoever dies and however many start at once; on a local disk and on S3."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import boto3
import pytest

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.engine import lease
from sweeps.engine.lease import Driver, Lease, StudyTaken, holding_lease


@pytest.fixture(params=["path", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A study's empty folder."""
    if request.param == "path":
        return str(tmp_path / "study")
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server, bucket = request.getfixturevalue("s3_server"), f"b-{uuid4().hex}"
    boto3.client("s3", endpoint_url=server).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/study?endpoint_override={server}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRY", 0.3)
    monkeypatch.setattr(lease, "GLANCE", 0.05)


def files(root: str) -> list[str]:
    return storage.listdir(storage.join(root, "driver"))


def leave_behind(root: str, **changes: object) -> str:
    """The file of a driver that was killed."""
    uri = storage.join(root, "driver", "000003.json")
    storage.write_bytes_atomic(uri, replace(Driver.of_this_process(), **changes).to_json())  # type: ignore[arg-type]
    return uri


def test_a_second_driver_is_refused_and_told_who_runs_the_study(root: str) -> None:
    with holding_lease(root, print) as mine, pytest.raises(InputError) as refused, holding_lease(root, print):
        pytest.fail("two drivers")
    (line,) = str(refused.value).splitlines()
    for words in (f"pid {os.getpid()}", mine.driver.host, mine.driver.since):
        assert words in line


def test_after_a_driver_has_ended_the_next_starts_at_once_and_tidies_up(root: str) -> None:
    said: list[str] = []
    for number in (1, 2, 3):
        with holding_lease(root, said.append):
            assert files(root) == [f"{number:06d}.json"]
    assert not said


def test_an_error_inside_lets_the_next_driver_in(root: str) -> None:
    with pytest.raises(KeyboardInterrupt), holding_lease(root, print):
        raise KeyboardInterrupt
    with holding_lease(root, print):
        pass


def gone() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("trace", [lambda: {"pid": gone()}, lambda: {"began": "1"}], ids=["gone", "number used again"])
def test_a_driver_killed_on_this_machine_is_replaced_at_once(root: str, trace: Callable[[], dict[str, object]]) -> None:
    leave_behind(root, **trace())
    said: list[str] = []
    with holding_lease(root, said.append):
        assert files(root) == ["000004.json"]
    assert len(said) == 1
    assert "gone" in said[0]


@pytest.mark.usefixtures("impatient")
def test_a_silent_driver_elsewhere_is_watched_then_replaced(root: str) -> None:
    leave_behind(root, machine="elsewhere", host="far")
    said: list[str] = []
    with holding_lease(root, said.append):
        assert files(root) == ["000004.json"]
    assert ["on far" in said[0], "taking over" in said[1]] == [True, True]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("content", [b"", b"[]", b'{"pid": 3}'], ids=["empty", "list", "other"])
def test_a_driver_killed_while_it_wrote_is_replaced(root: str, content: bytes) -> None:
    storage.write_bytes_atomic(storage.join(root, "driver", "000001.json"), content)
    with holding_lease(root, print):
        assert files(root) == ["000002.json"]


@pytest.mark.usefixtures("impatient")
def test_a_driver_elsewhere_that_lives_is_left_alone(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = leave_behind(root, machine="elsewhere", host="far")
    driver = Driver.read(storage.read_bytes(uri))
    assert driver is not None

    def meanwhile(seconds: float) -> None:
        storage.write_bytes_atomic(uri, replace(driver, beats=1).to_json())

    monkeypatch.setattr("sweeps.engine.lease.time.sleep", meanwhile)
    with pytest.raises(InputError, match="on far"), holding_lease(root, print):
        pytest.fail("two drivers")


@pytest.mark.usefixtures("impatient")
def test_of_many_that_start_at_once_after_a_death_one_runs(root: str) -> None:
    leave_behind(root, machine="elsewhere")
    won: list[Lease] = []
    refused: list[InputError] = []

    def start() -> None:
        try:
            won.append(lease._acquire(storage.join(root, "driver"), lambda text: None))
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 5)
    assert files(root) == ["000004.json"]


def test_a_driver_that_was_replaced_in_its_sleep_stops(root: str) -> None:
    with holding_lease(root, print) as sleeper:
        sleeper.beat()
        sleeper.check()
        storage.write_bytes_atomic(storage.join(root, "driver", "000002.json"), b"another")
        sleeper.beat()
        with pytest.raises(StudyTaken):
            sleeper.check()
    assert storage.read_bytes(storage.join(root, "driver", "000002.json")) == b"another"


def test_where_the_store_knows_no_exclusive_writes_the_next_beat_settles_it(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "create", storage.write_bytes_atomic)
    first, second = (Lease(storage.join(root, "driver"), 1) for _ in range(2))
    assert first.create()
    assert second.create()
    for each in (second, first):
        each.beat()
    second.check()
    with pytest.raises(StudyTaken):
        first.check()


def test_it_beats_by_itself_and_survives_an_outage(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.01)
    write, failures, beaten = storage.write_bytes_atomic, [1, 2, 3], threading.Event()

    def failing(uri: str, data: bytes) -> None:
        if failures:
            failures.pop()
            raise InputError("down")
        write(uri, data)
        beaten.set()

    monkeypatch.setattr(storage, "write_bytes_atomic", failing)
    with holding_lease(root, print) as mine:
        assert beaten.wait(20)
        mine.check()
    assert mine.driver.beats > 0
