"""Random faults on a tiny study, again and again for a given time: `python tests/soak.py --seconds 3600`.

A cluster of several nodes and an S3 server run on this machine. Each round runs the study anew while training workers,
trials' own processes, nodes and the driver are killed and the storage goes down; every kind comes up before one comes
again. In every second round one request in ten fails besides. A line says what was done. Exits 1 if a round's rows
are not those of the undisturbed run it begins with, or if the study does not get to its end.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

sys.path.append(str(Path(__file__).parents[1]))  # or the folder tests/sweeps beside this file would be `sweeps`
from chaos import PRUNING, TRIAL, WORKER, Driver, Nodes, rows, write_study
from faulty_proxy import FaultyProxy, Plan, one_in_ten, sound

from sparse_model import storage

ACCESS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}

STUCK = 300.0
"""Seconds without an end after the last fault of a round: something was lost."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="no round begins later than this (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their times (default 0)")
    parser.add_argument("--trials", type=int, default=1, help="trials of the study (default 1)")
    parser.add_argument("--outage", type=float, default=60, help="seconds for which the storage is down (default 60)")
    arguments = parser.parse_args()
    os.environ.update(ACCESS)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # or its requests drown what we say
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        Nodes(2) as nodes,
        FaultyProxy(f"http://{host}:{port}") as proxy,
    ):
        boto3.client("s3", endpoint_url=proxy.address).create_bucket(Bucket="bucket")
        study = write_study(Path(folder) / "tiny.yaml", arguments.trials)
        case = Soak(study, nodes, proxy, arguments.outage, random.Random(arguments.seed))
        lost = soak(case, undisturbed(case), arguments.seconds)
    server.stop()
    return 1 if lost else 0


@dataclass
class Soak:
    """What is hurt, and how far it got."""

    study: Path
    nodes: Nodes
    proxy: FaultyProxy
    outage: float
    random: random.Random
    per_round: int = 4  # faults; a trial's own process may be lost three times before the trial counts as failed
    due: list[str] = field(default_factory=list)  # all kinds of faults, in random order, before any comes again
    done: dict[str, int] = field(default_factory=dict)
    usual: Plan = sound  # what becomes of requests while the storage is up
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:7.1f} s  {text}", flush=True)

    def uri(self, round_: int) -> str:
        return f"s3://bucket/round-{round_}?endpoint_override={self.proxy.address}"

    def start(self, round_: int) -> Driver:
        return Driver(self.study, self.uri(round_), self.study.parent / "log", self.nodes.address)

    def found(self, round_: int) -> dict[str, object]:
        return dict(rows(storage.join(self.uri(round_), "tiny")))


def soak(case: Soak, expected: dict[str, object], seconds: float) -> int:
    """Rounds till the time is over; how many of them lost something."""
    lost = 0
    for round_ in count(1):
        if time.monotonic() - case.started > seconds and round_ > 1:
            break
        try:
            disturbed(case, round_)
            same = case.found(round_) == expected
            case.say(f"round {round_}: {'rows equal the undisturbed ones' if same else 'ROWS DIFFER'}")
        except AssertionError as error:
            case.say(f"round {round_}: THE STUDY DID NOT END: {error}")
            same = False
        lost += not same
    told = ", ".join(f"{name} {times}" for name, times in sorted(case.done.items()))
    case.say(f"{round_ - 1} rounds; {told}; {'nothing was lost' if not lost else f'{lost} ROUNDS LOST SOMETHING'}")
    return lost


def undisturbed(case: Soak) -> dict[str, object]:
    """The rows there should be."""
    case.say("undisturbed run")
    driver = case.start(0)
    try:
        driver.end(patience=STUCK)
    finally:
        driver.kill()
    return case.found(0)


def disturbed(case: Soak, round_: int) -> None:
    """One run of the study, hurt `per_round` times, each time after it got further."""
    case.proxy.plan = case.usual = one_in_ten(case.random) if round_ % 2 == 0 else sound
    driver = case.start(round_)
    try:
        for _ in range(case.per_round):
            await_progress(case, driver)
            if name := hurt(case, driver):
                case.say(f"round {round_}: {name}")
            if driver.process.poll() is not None and driver.process.returncode < 0:
                driver = case.start(round_)
        driver.end(patience=STUCK)
    finally:
        driver.kill()
        case.proxy.plan = sound


def hurt(case: Soak, driver: Driver) -> str:
    """Do what is due as soon as it can be done, and say what it was; nothing if the study ends before."""
    case.due = case.due or case.random.sample(sorted(FAULTS), len(FAULTS))
    deadline = time.monotonic() + STUCK
    while driver.process.poll() is None:
        if FAULTS[case.due[0]](case, driver):
            name = case.due.pop(0)
            case.done[name] = case.done.get(name, 0) + 1
            return name
        assert time.monotonic() < deadline, driver.said()
        time.sleep(0.1)
    return ""


def await_progress(case: Soak, driver: Driver) -> None:
    """Wait till the study has kept something new, and a moment more."""
    before, deadline = len(case.proxy.requests), time.monotonic() + STUCK
    while driver.process.poll() is None:
        assert time.monotonic() < deadline, driver.said()
        new = case.proxy.requests[before:]
        if any(method == "PUT" and "/driver/" not in path and fault is None for method, path, fault in new):
            break
        time.sleep(0.1)
    time.sleep(case.random.uniform(0, 3))


def kill_driver(case: Soak, driver: Driver) -> bool:
    driver.kill()
    return True


def take_storage_away(case: Soak, driver: Driver) -> bool:
    case.proxy.plan = lambda method, path, number: 503
    time.sleep(case.outage)
    case.proxy.plan = case.usual
    return True


def replace_node(case: Soak, driver: Driver) -> bool:
    removed = (
        case.nodes.remove_one_with(PRUNING) or case.nodes.remove_one_with(WORKER) or case.nodes.remove_one_with("")
    )
    if removed:
        case.nodes.add()
    return removed


FAULTS: dict[str, Callable[[Soak, Driver], bool]] = {
    "training worker killed": lambda case, driver: case.nodes.kill_one(WORKER),
    "trial's process killed": lambda case, driver: case.nodes.kill_one(TRIAL),
    "node removed, another added": replace_node,
    "driver killed and started again": kill_driver,
    "storage down": take_storage_away,
}

if __name__ == "__main__":
    sys.exit(main())
