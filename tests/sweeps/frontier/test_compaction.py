"""Compaction beside writers: whatever happens between any two of its steps, no row is lost or read twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from sparse_model import storage
from sweeps.cli import status_of
from sweeps.frontier.compaction import compact_rows
from sweeps.frontier.parquet import read_table
from sweeps.frontier.rows import row_uri, table_uri, write_circuit_rows, write_trial_row

STEPS = ("versions", "read_many", "write_bytes_atomic", "remove_many")


class Killed(BaseException):
    """The process ends here."""


class World:
    """A frontier and what its writers believe is in it: of every trial the newest attempt and its circuits."""

    def __init__(self) -> None:
        self.root = f"memory://{uuid4().hex}"
        self.expected: dict[str, tuple[int, int]] = {}

    def write(self, trial: str, circuits: int) -> None:
        """Run a trial, or run it again: its next attempt, with so many circuits."""
        attempt = self.expected[trial][0] + 1 if trial in self.expected else 0
        rows = [{"trial": trial, "task": f"{i}", "edges": attempt} for i in range(circuits)]
        write_circuit_rows(self.root, trial, rows, attempt)
        write_trial_row(self.root, {"trial": trial, "attempt": attempt})
        self.expected[trial] = (attempt, circuits)

    def check(self) -> None:
        trials = read_table(self.root, "trials").to_pylist()
        assert {row["trial"]: row["attempt"] for row in trials} == {t: a for t, (a, _) in self.expected.items()}
        assert len(trials) == len(self.expected)
        found = sorted(
            (row["trial"], row["task"], row["edges"]) for row in read_table(self.root, "circuits").to_pylist()
        )
        assert found == sorted((t, f"{i}", a) for t, (a, n) in self.expected.items() for i in range(n))


def stepwise(patch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """Call `before(n)` before the n-th storage operation of the compaction, and delete files one by one."""
    count, busy = 0, False
    originals = {name: getattr(storage, name) for name in STEPS}

    def step(name: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal count, busy
            if busy:
                return originals[name](*arguments)
            if name == "remove_many":
                uri, files = arguments
                for file in files:
                    run_one(lambda file=file: originals[name](uri, [file]))
                return None
            return run_one(lambda: originals[name](*arguments))

        return run

    def run_one(operation: Callable[[], Any]) -> Any:
        nonlocal count, busy
        busy = True
        try:
            before(count)
            count += 1
        finally:
            busy = False
        return operation()

    for name in STEPS:
        patch.setattr(storage, name, step(name))


TRIAL = st.tuples(st.sampled_from(["t0", "t1", "t2", "t3"]), st.integers(0, 2))


@settings(max_examples=25, deadline=None)
@given(
    rounds=st.lists(
        st.tuples(
            st.lists(TRIAL, max_size=4),  # written before the compaction
            st.dictionaries(st.integers(0, 16), st.one_of(TRIAL, st.just("compact")), max_size=4),  # and during it
            st.integers(0, 24),  # the step before which it is killed, if it gets there
        ),
        min_size=1,
        max_size=3,
    )
)
def test_nothing_is_lost_or_doubled_at_any_point(rounds: list[Any]) -> None:
    world = World()
    for written, meanwhile, kill_at in rounds:
        for trial, circuits in written:
            world.write(trial, circuits)

        def before(step: int, meanwhile: Any = meanwhile, kill_at: int = kill_at) -> None:
            if step == kill_at:
                raise Killed
            act = meanwhile.get(step)
            if act == "compact":
                compact_rows(world.root)
            elif act is not None:
                world.write(*act)
            if step == kill_at - 1 or act is not None:
                world.check()

        with pytest.MonkeyPatch.context() as patch:
            stepwise(patch, before)
            with suppress(Killed):
                compact_rows(world.root)
        world.check()
    compact_rows(world.root)
    world.check()


def test_one_file_remains_and_plain_pandas_reads_it(tmp_path: Any) -> None:
    root = str(tmp_path)
    for i in range(5):
        write_circuit_rows(root, f"t{i}", [{"trial": f"t{i}", "task": "x"}] * (i % 2))
        write_trial_row(root, {"trial": f"t{i}"})
    assert [(done.table, done.files, done.rows) for done in compact_rows(root)] == [
        ("trials", 5, 5),
        ("circuits", 5, 2),
    ]
    assert len(storage.listdir(table_uri(root, "trials"))) == 1
    assert sorted(pd.read_parquet(tmp_path / "frontier" / "trials")["trial"]) == [f"t{i}" for i in range(5)]
    assert compact_rows(root) == []


def test_files_of_other_programs_are_left_alone(tmp_path: Any) -> None:
    root = str(tmp_path)
    for key in ("t0", "t1"):
        write_trial_row(root, {"trial": key})
    columns = {"trial": ["x", "y"], "kind": "sparse", "status": "ok", "val_loss": [1.0, 2.0]}
    pd.DataFrame(columns).to_parquet(row_uri(root, "trials", "all"))
    compact_rows(root)
    assert "all.parquet" in storage.listdir(table_uri(root, "trials"))
    assert sorted(read_table(root, "trials")["trial"].to_pylist()) == ["t0", "t1", "x", "y"]


def test_a_reader_whose_files_vanish_looks_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path)
    for key in ("t0", "t1"):
        write_trial_row(root, {"trial": key})
    done = False

    def before(step: int) -> None:
        nonlocal done
        if step == 1 and not done:
            done = True
            compact_rows(root)

    stepwise(monkeypatch, before)
    assert read_table(root, "trials")["trial"].to_pylist() == ["t0", "t1"]
    assert done


def test_columns_that_we_do_not_know_are_kept(tmp_path: Any) -> None:
    """Of a later version, or added by hand: in one file and not in another, of one type here and another there."""
    root = str(tmp_path)
    folder = tmp_path / "frontier" / "trials"
    for key, extra in {
        "t0": {"note": "first", "score": 1, "mixed": 1},
        "t1": {"score": 2.5, "mixed": "x"},
        "t2": {"tags": ["a", "b"], "mixed": None},
        "t3": {},
    }.items():
        write_trial_row(root, {"trial": key, "val_loss": 2.0, "seed": 7})
        rows = pq.read_table(folder / f"{key}.parquet")
        for name, value in extra.items():
            rows = rows.append_column(name, pa.array([value]))
        pq.write_table(rows, folder / f"{key}.parquet")
    compact_rows(root)
    write_trial_row(root, {"trial": "t4"})
    compact_rows(root)
    (file,) = storage.listdir(table_uri(root, "trials"))
    found = {row["trial"]: row for row in pq.read_table(folder / file).to_pylist()}
    assert [found[f"t{i}"]["note"] for i in range(5)] == ["first", None, None, None, None]
    assert [found[f"t{i}"]["score"] for i in range(5)] == [1, 2.5, None, None, None]
    assert [found[f"t{i}"]["mixed"] for i in range(3)] == ["1", "x", None]
    assert found["t2"]["tags"] == ["a", "b"]
    assert read_table(root, "trials")["seed"].to_pylist() == [7, 7, 7, 7, None]


def test_a_file_of_whose_values_some_would_be_lost_is_left_alone(tmp_path: Any) -> None:
    root = str(tmp_path)
    for key in ("t0", "t1", "t2"):
        write_trial_row(root, {"trial": key, "seed": 1})
    path = tmp_path / "frontier" / "trials" / "t1.parquet"
    rows = pq.read_table(path)
    place = rows.schema.get_field_index("seed")
    pq.write_table(rows.set_column(place, "seed", pa.array(["seven"])), path)
    compact_rows(root)
    assert "t1.parquet" in storage.listdir(table_uri(root, "trials"))
    assert pq.read_table(path)["seed"].to_pylist() == ["seven"]


def test_the_command(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("t0", "t1"):
        write_trial_row(str(tmp_path), {"trial": key})
    assert status_of(["compact", str(tmp_path)]) == 0
    assert "2 files of trials are one now (2 rows)" in capsys.readouterr().out
    assert status_of(["compact", str(tmp_path)]) == 0
    assert "nothing to join" in capsys.readouterr().out
    assert status_of(["compact", str(tmp_path / "nowhere")]) == 2
