"""Rows that other programs wrote, in the forms in which they write them: read for what they say, or refused."""

from __future__ import annotations

import datetime
import decimal
import logging
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_model.errors import InputError
from sweeps.cli import status_of
from sweeps.frontier.compaction import compact_rows
from sweeps.frontier.queries import Frontier
from sweeps.frontier.rows import write_trial_row

ROWS = pd.DataFrame(
    {
        "trial": ["a", "b", "c d/é"],
        "kind": ["sparse", "dense", "sparse"],
        "status": ["ok", "ok", "failed"],
        "val_loss": [1.5, 2.0, None],
        "circuit_edges": [10.0, 20.0, None],
        "seed": [0, 1, 1],
        "study": ["s", "s", "s"],
    }
)


def folder(root: Path, table: str = "trials") -> Path:
    path = root / "frontier" / table
    path.mkdir(parents=True, exist_ok=True)
    return path


def read(root: Path, *columns: str) -> list[tuple[Any, ...]]:
    rows = Frontier(str(root)).trials().to_pylist()
    return sorted(tuple(row[name] for name in columns) for row in rows)


EXPECTED = [("a", "sparse", 1.5, 0), ("b", "dense", 2.0, 1), ("c d/é", "sparse", None, 1)]


@pytest.mark.parametrize("keys", [["kind"], ["kind", "seed"], ["trial"], ["status", "kind", "trial"]])
@pytest.mark.parametrize("engine", ["duckdb", "pandas"])
def test_partitioned_folders(engine: str, keys: list[str], tmp_path: Path) -> None:
    target = folder(tmp_path)
    if engine == "pandas":
        ROWS.to_parquet(target, partition_cols=keys)
    else:
        frame = ROWS  # noqa: F841  (DuckDB finds it by its name)
        target.rmdir()
        duckdb.sql(f"COPY frame TO '{target}' (FORMAT parquet, PARTITION_BY ({', '.join(keys)}))")
    assert read(tmp_path, "trial", "kind", "val_loss", "seed") == EXPECTED
    assert Frontier(str(tmp_path)).pareto()["trial"].to_pylist() == ["a"]


def test_a_folder_that_is_called_like_a_file(tmp_path: Path) -> None:
    """As Spark and Dask write one, with files of their own beside the rows."""
    inner = folder(tmp_path) / "x.parquet"
    inner.mkdir()
    for number, half in enumerate((ROWS[:1], ROWS[1:])):
        half.to_parquet(inner / f"part-{number:05d}.snappy.parquet")
    for name in ("_SUCCESS", "_metadata", ".part-00000.snappy.parquet.crc"):
        (inner / name).write_bytes(b"")
    assert read(tmp_path, "trial", "kind", "val_loss", "seed") == EXPECTED


def test_files_of_one_name_in_several_folders_are_all_read(tmp_path: Path) -> None:
    """Names of other programs' files mean nothing; `+1` of ours is an attempt that replaces."""
    for kind, rows in ROWS.groupby("kind"):
        (folder(tmp_path) / f"kind={kind}").mkdir()
        rows.drop(columns="kind").to_parquet(folder(tmp_path) / f"kind={kind}" / "part+1.parquet")
    write_trial_row(str(tmp_path), {"trial": "part", "study": "s", "kind": "dense", "status": "ok", "val_loss": 3.0})
    assert [row[0] for row in read(tmp_path, "trial")] == ["a", "b", "c d/é", "part"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("kind=*/*.parquet")}
    write_trial_row(str(tmp_path), {"trial": "more", "study": "s", "kind": "dense", "status": "ok", "val_loss": 3.0})
    assert [done.files for done in compact_rows(str(tmp_path))] == [2]
    assert {path: path.read_bytes() for path in tmp_path.rglob("kind=*/*.parquet")} == before
    assert len(read(tmp_path, "trial")) == 5


@pytest.mark.parametrize("files", [{}, {"x.parquet/_SUCCESS": b""}, {"kind=a/rows.csv": b"trial\n"}, {"a.json": b"{}"}])
def test_a_folder_without_rows_is_no_empty_table(
    files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path)
    for name, content in files.items():
        (folder(tmp_path) / name).parent.mkdir(exist_ok=True)
        (folder(tmp_path) / name).write_bytes(content)
    assert status_of(["frontier", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert ("no frontier here" in said) or ("has no .parquet file" in said)


def test_links_are_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "kind=sparse").mkdir(parents=True)
    ROWS[1:2].to_parquet(elsewhere / "rows.parquet")
    ROWS[ROWS.kind == "sparse"].drop(columns="kind").to_parquet(elsewhere / "kind=sparse" / "x.parquet")
    target = folder(tmp_path / "study")
    (target / "link.parquet").symlink_to(elsewhere / "rows.parquet")
    (target / "kind=sparse").symlink_to(elsewhere / "kind=sparse")
    (target / "circle").symlink_to(target)
    (target / "gone.parquet").symlink_to(tmp_path / "nothing")
    assert read(tmp_path / "study", "trial", "kind", "val_loss", "seed") == EXPECTED


def one(column: str, values: Any) -> pa.Table:
    needed = {"trial": ["a"], "kind": ["sparse"], "status": ["ok"], "val_loss": [1.0], "circuit_edges": [2.0]}
    return pa.table({**needed, column: values})


NOON = datetime.datetime(2026, 1, 2, 12, 0, 0, 123456, tzinfo=datetime.UTC)
NANOSECONDS = 1767355200123456789


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("finished", pa.array([NANOSECONDS], pa.timestamp("ns")), NOON),
        ("finished", pa.array([NANOSECONDS], pa.timestamp("ns", "Europe/Paris")), NOON),
        ("finished", pa.array([NANOSECONDS // 1000], pa.timestamp("us")), NOON),
        ("finished", pa.array([NANOSECONDS // 10**6], pa.timestamp("ms")), NOON.replace(microsecond=123000)),
        ("finished", pa.array([NANOSECONDS // 10**9], pa.timestamp("s")), NOON.replace(microsecond=0)),
        ("finished", pa.array([NOON.date()]), NOON.replace(hour=0, microsecond=0)),
        ("finished", pa.array(["2026-01-02 12:00:00.123456"]), NOON),
        ("finished", pa.array(["2026-01-02T13:00:00.123456+01:00"], pa.large_string()), NOON),
        ("finished", pa.nulls(1), None),
        ("seed", pa.array([3], pa.uint64()), 3),
        ("seed", pa.array([3.0]), 3),
        ("seed", pa.array([float("nan")]), None),
        ("seed", pa.array([decimal.Decimal("3.00")]), 3),
        ("tokens", pa.array([2**31], pa.uint32()), 2**31),
        ("train_loss", pa.array([decimal.Decimal("1.25")]), 1.25),
        ("train_loss", pa.array([float("nan")]), None),
        ("train_loss", pa.array([2], pa.int8()), 2.0),
        ("train_loss", pa.array(np.array([1.5], np.float16)), 1.5),
        ("retried", pa.array([1], pa.int8()), True),
        ("retried", pa.array([0.0]), False),
        ("study", pa.array(["s"]).dictionary_encode(), "s"),
        ("study", pa.array(["s"], pa.large_string()), "s"),
        ("study", pa.array([b"s"]), "s"),
        ("study", pa.array(["s"], pa.string_view()), "s"),
        ("study", pa.array([7]), "7"),
        ("reason", pa.nulls(1), None),
        ("val_loss", pa.array([decimal.Decimal("1.5")]), 1.5),
        ("trial", pa.array([17]), "17"),
        ("kind", pd.Categorical(["dense"]), "dense"),
    ],
    ids=str,
)
def test_other_types_for_the_same_values(column: str, values: Any, expected: Any, tmp_path: Path) -> None:
    pq.write_table(one(column, values), folder(tmp_path) / "rows.parquet")
    assert read(tmp_path, column) == [(expected,)]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("finished", pa.array([5])),
        ("finished", pa.array(["yesterday"])),
        ("seed", pa.array([1.5])),
        ("seed", pa.array([2**64 - 1], pa.uint64())),
        ("config", pa.array([{"lr": 1}])),
        ("reason", pa.array([b"\xff"])),
        ("tokens", pa.array([[1, 2]])),
    ],
    ids=str,
)
def test_an_optional_column_that_cannot_be_read_is_empty_and_said(
    column: str, values: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pq.write_table(one(column, values), folder(tmp_path) / "rows.parquet")
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, "trial", column) == [("a", None)]
    (record,) = {record.getMessage() for record in caplog.records}
    assert f"rows.parquet in frontier/trials: column '{column}' of " in record
    assert "left empty" in record


@pytest.mark.parametrize("edges", [float("inf"), float("-inf"), float("nan"), -3.0])
def test_what_is_no_size_is_not_on_the_front(edges: float, tmp_path: Path) -> None:
    rows = pd.DataFrame({"trial": ["a", "b"], "kind": "sparse", "status": "ok", "val_loss": [1.0, 2.0]})
    rows["circuit_edges"] = [edges, 5.0]
    rows.to_parquet(folder(tmp_path) / "rows.parquet")
    assert Frontier(str(tmp_path)).pareto()["trial"].to_pylist() == ["b"]
    assert status_of(["frontier", str(tmp_path), "--plot", str(tmp_path / "x.png")]) == 0


@pytest.mark.parametrize(
    ("column", "values"),
    [("val_loss", pa.array(["low"])), ("val_loss", pa.array([True])), ("kind", pa.array([["sparse"]]))],
    ids=str,
)
def test_a_needed_column_that_cannot_be_read_is_refused(column: str, values: Any, tmp_path: Path) -> None:
    pq.write_table(one(column, values), folder(tmp_path) / "rows.parquet")
    with pytest.raises(InputError, match=f"rows.parquet in frontier/.*column '{column}' of .*; allowed: ") as error:
        Frontier(str(tmp_path)).trials()
    assert "\n" not in str(error.value)


def test_rows_without_a_trial_are_refused(tmp_path: Path) -> None:
    ROWS.assign(trial=["a", None, None]).to_parquet(folder(tmp_path) / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet in frontier/trials: 2 rows have no trial"):
        read(tmp_path, "trial")


@pytest.mark.parametrize("several", [False, True], ids=["in one file", "in two"])
def test_a_trial_that_is_there_twice_is_refused(several: bool, tmp_path: Path) -> None:
    halves = (ROWS[:2], ROWS[1:]) if several else (pd.concat([ROWS, ROWS[1:2]]),)
    for number, rows in enumerate(halves):
        rows.to_parquet(folder(tmp_path) / f"part-{number}.parquet")
    with pytest.raises(InputError, match="frontier/trials: 2 rows of trial 'b'; allowed: one"):
        read(tmp_path, "trial")


def test_a_circuit_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    ROWS.to_parquet(folder(tmp_path) / "x.parquet")
    circuits = {
        "trial": ["a", "a", "a"],
        "task": ["x", "y", "x"],
        "target_loss": 0.1,
        "status": "ok",
        "edges": [1, 2, 3],
    }
    pd.DataFrame(circuits).to_parquet(folder(tmp_path, "circuits") / "y.parquet")
    with pytest.raises(
        InputError, match=r"y\.parquet in frontier/circuits: 2 rows of trial 'a' task 'x' target_loss 0\.1"
    ):
        Frontier(str(tmp_path)).circuits()
    pd.DataFrame(circuits | {"method": ["node", "node", "edge"]}).to_parquet(tmp_path / "frontier/circuits/y.parquet")
    assert Frontier(str(tmp_path)).circuits().num_rows == 3
