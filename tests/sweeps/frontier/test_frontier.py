"""Rows and the frontier, on every kind of storage."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from circuit.search.config import SEARCH_VERSION
from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.frontier.pareto import dominated_area, growing_area, non_dominated
from sweeps.frontier.queries import REFERENCE, Frontier
from sweeps.frontier.rows import (
    CIRCUIT_SCHEMA,
    SCHEMA_VERSION,
    TRIAL_SCHEMA,
    parquet_bytes,
    row_uri,
    write_circuit_rows,
    write_trial_row,
)
from sweeps.search.objectives import geometric_mean_edges
from sweeps.show.plot import draw, plot_frontier


@pytest.fixture(params=["folder", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(tmp_path / "study")
    if request.param == "memory":
        return f"memory://{uuid4().hex}/study"
    address = request.getfixturevalue("s3_server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"b-{uuid4().hex}"
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/study?endpoint_override={address}"


def trial(key: str, loss: float, edges: float | None, **more: Any) -> dict[str, Any]:
    row = {
        "study": "s", "trial": key, "kind": "sparse", "status": "ok", "reason": "", "retried": False,
        "eligible": edges is not None, "seed": 0, "d_model": 64, "n_layer": 2, "fraction": 0.1, "l0": 10,
        "val_loss": loss, "tasks_solved": 3, "tasks_tried": 4, "circuit_edges": edges, "target_loss": 0.15,
        "config": "{}",
    }  # fmt: skip
    return row | more


def test_rows_come_back(root: str) -> None:
    write_circuit_rows(root, "t1", [{"study": "s", "trial": "t1", "task": "x", "target_loss": 0.1, "edges": 5}])
    write_trial_row(root, trial("t1", 2.0, 10.0))
    write_trial_row(root, trial("t0", 1.0, 20.0))
    found = Frontier(root)
    assert found.trials().schema.equals(TRIAL_SCHEMA)
    assert found.trials()["trial"].to_pylist() == ["t0", "t1"]
    assert found.circuits()["edges"].to_pylist() == [5]
    assert found.where("val_loss > 1.5")["trial"].to_pylist() == ["t1"]
    joined = found.sql("SELECT t.trial, c.task FROM trials t JOIN circuits c USING (trial)")
    assert joined.to_pylist() == [{"trial": "t1", "task": "x"}]


def test_a_trial_run_again_has_rows_beside_which_the_earlier_do_not_count(root: str) -> None:
    write_trial_row(root, trial("t0", 9.0, None, status="failed"))
    write_circuit_rows(root, "t0", [{"trial": "t0", "task": "x"}, {"trial": "t0", "task": "y"}])
    assert write_circuit_rows(root, "t0", [{"trial": "t0", "task": "x"}], attempt=1)
    assert write_trial_row(root, trial("t0", 2.0, 5.0, attempt=1, retried=True))
    found = Frontier(root)
    assert found.trials()["val_loss"].to_pylist() == [2.0]
    assert found.circuits().num_rows == 1


def test_rows_of_an_attempt_are_never_replaced(root: str) -> None:
    """A driver that was taken for dead, or a process of its, comes too late."""
    assert write_trial_row(root, trial("t0", 2.0, 5.0))
    assert write_circuit_rows(root, "t0", [{"trial": "t0", "task": "x"}])
    assert not write_trial_row(root, trial("t0", 9.0, None, status="failed"))
    assert not write_circuit_rows(root, "t0", [])
    found = Frontier(root)
    assert found.trials()["val_loss"].to_pylist() == [2.0]
    assert found.circuits().num_rows == 1


def test_no_frontier_is_said_in_one_line(root: str) -> None:
    with pytest.raises(InputError, match="no frontier here") as caught:
        Frontier(root)
    assert "\n" not in str(caught.value)


def test_parent_folder_names_its_studies(root: str) -> None:
    write_trial_row(storage.join(root, "quick"), trial("t0", 1.0, 1.0))
    with pytest.raises(InputError, match="quick"):
        Frontier(root)


def test_damaged_rows_are_named(root: str) -> None:
    write_trial_row(root, trial("t0", 1.0, 1.0))
    whole = storage.read_bytes(row_uri(root, "trials", "t0"))
    storage.write_bytes_atomic(row_uri(root, "trials", "t1"), whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        Frontier(root).trials()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('{folder}/frontier/trials/t0.parquet')",
        "SELECT * FROM read_parquet('s3://bucket/x')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM planted",
        "COPY trials TO '{folder}/out.csv'",
        "EXPORT DATABASE '{folder}/out'",
        "ATTACH '{folder}/out.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "CREATE TABLE x AS SELECT 1",
        "CREATE SECRET s (TYPE s3)",
        "SELECT 1; SELECT 2",
        "SELECT * FROM trials; COPY trials TO '{folder}/out.csv'",
        "PIVOT '{folder}/frontier/trials/t0.parquet' ON kind USING count(*)",
        "PIVOT trials ON kind USING count(*); CREATE TABLE x AS SELECT 1",
    ],
)
def test_queries_reach_nothing_else(tmp_path: Path, query: str) -> None:
    write_trial_row(str(tmp_path), trial("t0", 1.0, 1.0))
    planted = pa.table({"secret": [1]})
    with pytest.raises(InputError, match=r"^sql: ") as caught:
        Frontier(str(tmp_path)).sql(query.format(folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["frontier"]
    assert planted.num_rows == 1


def test_queries_that_are_allowed(tmp_path: Path) -> None:
    write_trial_row(str(tmp_path), trial("t0", 1.0, 1.0))
    found = Frontier(str(tmp_path))
    assert found.sql("WITH x AS (FROM trials) SELECT sum(l0) AS l0 FROM x").to_pylist() == [{"l0": 10}]
    assert found.sql("DESCRIBE trials").num_rows == len(TRIAL_SCHEMA.names)
    assert found.sql("SELECT count(*) AS n FROM Circuits").to_pylist() == [{"n": 0}]
    assert found.sql("SHOW TABLES")["name"].to_pylist() == ["circuits", "trials"]
    assert found.sql("PIVOT trials ON kind USING sum(l0) GROUP BY seed").to_pylist() == [{"seed": 0, "sparse": 10}]
    assert found.sql("FROM (PIVOT trials ON kind USING count(*) GROUP BY study)").num_rows == 1
    assert found.sql("UNPIVOT trials ON l0, tokens INTO NAME figure VALUE number").num_rows > 0


def test_misspelt_choices_are_refused(tmp_path: Path) -> None:
    write_trial_row(str(tmp_path), trial("t0", 1.0, 1.0))
    with pytest.raises(TypeError, match="task: no such choice; allowed: where, target, tasks, method"):
        Frontier(str(tmp_path)).pareto(task="x")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="allowed: a list of names"):
        Frontier(str(tmp_path)).pareto(tasks="x", target=0.15)


def test_bad_queries_are_one_line(tmp_path: Path) -> None:
    write_trial_row(str(tmp_path), trial("t0", 1.0, 1.0))
    for query in ("SELECT nothing FROM trials", "SELEC", ""):
        with pytest.raises(InputError, match="sql: ") as caught:
            Frontier(str(tmp_path)).sql(query)
        assert "\n" not in str(caught.value)


def test_columns_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write_trial_row(str(tmp_path), trial("t0", 1.0, 1.0))
    answer = Frontier(str(tmp_path)).sql("SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a")
    assert answer.to_pylist() == [{"a": 1, "a_2": 2, "a_1": 3, "a_3": 4}]


def test_rows_are_readable_with_plain_pandas(tmp_path: Path) -> None:
    write_trial_row(str(tmp_path), trial("t0", 1.0, 4.0))
    write_trial_row(str(tmp_path), trial("t1", 2.0, None))
    table = pd.read_parquet(tmp_path / "frontier" / "trials")
    assert list(table.columns) == TRIAL_SCHEMA.names
    assert table["circuit_edges"].isna().tolist() == [False, True]


def test_schemas_have_what_others_rely_on(tmp_path: Path) -> None:
    """The columns of the design, and a version that any Parquet tool can see."""
    trials = "study trial kind status reason seed d_model n_layer fraction l0 total_params tokens train_loss val_loss "
    trials += "tasks_solved circuit_edges flops train_seconds prune_seconds config schema_version"
    circuits = "study trial task target_loss method status nodes edges loss heldout_loss heldout_accuracy "
    circuits += "unpruned_loss necessity_loss subset_worst_loss adversary_loss nonsense_edges agreement backups seconds"
    assert set(trials.split()) <= set(TRIAL_SCHEMA.names)
    assert set(circuits.split()) <= set(CIRCUIT_SCHEMA.names)
    write_trial_row(str(tmp_path), trial("t0", 1.0, 4.0))
    schema = pq.read_schema(row_uri(str(tmp_path), "trials", "t0"))
    assert schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()


def test_rows_from_before_a_column_was_added_are_read(tmp_path: Path) -> None:
    for key in ("t0", "t1"):
        write_trial_row(str(tmp_path), trial(key, 1.0, 4.0) | {"active": 0.2})
    path = row_uri(str(tmp_path), "trials", "t1")
    pq.write_table(pq.read_table(path).drop_columns(["active"]), path)
    assert Frontier(str(tmp_path)).trials()["active"].to_pylist() == [0.2, None]


def test_newer_rows_are_refused(tmp_path: Path) -> None:
    write_trial_row(str(tmp_path), trial("t0", 1.0, 4.0))
    path = row_uri(str(tmp_path), "trials", "t0")
    pq.write_table(pq.read_table(path).replace_schema_metadata({"schema_version": str(SCHEMA_VERSION + 1)}), path)
    with pytest.raises(InputError, match=f"rows of schema {SCHEMA_VERSION + 1}"):
        Frontier(str(tmp_path)).trials()


def test_rows_of_schema_1_are_migrated(root: str) -> None:
    """As version 1 wrote them: no attempt, devices or finished."""
    for key, retried in (("t0", False), ("t1", True)):
        row = trial(key, 2.0, 5.0, retried=retried, schema_version=1)
        fields = [field for field in TRIAL_SCHEMA if field.name not in ("attempt", "devices", "finished")]
        old = pa.Table.from_pylist([row], schema=pa.schema(fields, metadata={"schema_version": "1"}))
        storage.write_bytes_atomic(row_uri(root, "trials", key), parquet_bytes(old))
    write_trial_row(root, trial("t2", 1.0, 6.0, attempt=0))
    rows = Frontier(root).trials()
    assert rows.schema.equals(TRIAL_SCHEMA)
    assert rows["attempt"].to_pylist() == [0, 1, 0]
    assert rows["schema_version"].to_pylist() == [1, 1, SCHEMA_VERSION]
    assert [time is None for time in rows["finished"].to_pylist()] == [True, True, False]
    assert Frontier(root).hypervolume_over_time()["trial"].to_pylist() == ["t2"], "never mixed with others"
    assert "2 trials are not compared with these" in Frontier(root).compared().note()
    old_ones = Frontier(root).compared(where="schema_version = 1")
    assert old_ones.compared.tolist() == [True, True]
    assert "rows of schema 1" in old_ones.note()


def test_circuits_of_several_searches_are_not_compared(root: str) -> None:
    """What an earlier search found, and rows from before a search had a version, whose search nobody knows."""
    for key, version in (("t0", SEARCH_VERSION - 1), ("t1", SEARCH_VERSION), ("t2", None)):
        write_trial_row(root, trial(key, 2.0, 5.0, search_version=version))
        edges = {"task": "a", "target_loss": 0.15, "method": "node", "status": "ok", "edges": 5, "counted": True}
        write_circuit_rows(root, key, [edges | {"study": "s", "trial": key, "search_version": version}])
    found = Frontier(root)
    assert found.trials()["search_version"].to_pylist() == [SEARCH_VERSION - 1, SEARCH_VERSION, 0]
    assert found.circuits()["search_version"].to_pylist() == [SEARCH_VERSION - 1, SEARCH_VERSION, 0]
    assert found.compared().compared.tolist() == [False, True, False]
    assert f"2 trials are not compared with these, for their rows are of {ANOTHER}" in found.compared().note()
    others = found.compared(where=f"schema_version <> {SCHEMA_VERSION} OR search_version <> {SEARCH_VERSION}")
    assert others.compared.tolist() == [True, False]
    assert f"{SEARCH_VERSION - 1}: --where" in others.note()
    unknown = found.compared(where="search_version = 0")
    assert unknown.compared.tolist() == [True]
    assert "circuits of search unknown" in unknown.note()


ANOTHER = f"another schema than {SCHEMA_VERSION}, or another search than {SEARCH_VERSION}"


def test_rows_of_another_program(tmp_path: Path) -> None:
    """One file of many trials, other integer and text types, columns of its own, no version."""
    (tmp_path / "frontier" / "trials").mkdir(parents=True)
    table = pd.DataFrame([trial(f"x{i}", 2.0 - i / 10, 5.0 + i, mine=i) for i in range(3)])
    table = table.astype({"l0": "float64", "seed": "int32", "kind": "category"})
    table.to_parquet(tmp_path / "frontier" / "trials" / "all.parquet")
    found = Frontier(str(tmp_path))
    assert found.trials()["l0"].to_pylist() == [10, 10, 10]
    assert found.pareto()["trial"].to_pylist() == ["x2", "x1", "x0"]
    assert set(found.trials()["search_version"].to_pylist()) == {SEARCH_VERSION}


def test_what_rows_of_another_program_lack_or_pretend_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "frontier" / "trials"
    folder.mkdir(parents=True)
    pd.DataFrame([trial("x", 2.0, 5.0)]).drop(columns="status").to_parquet(folder / "all.parquet")
    with pytest.raises(InputError, match=r"all.parquet in frontier/trials has no column 'status'$"):
        Frontier(str(tmp_path)).trials()
    (folder / "all.parquet").rename(folder / "compacted-mine.parquet")
    with pytest.raises(InputError, match=r"compacted-mine.parquet is not of"):
        Frontier(str(tmp_path)).trials()


def test_targets_in_32_bits_are_the_same_targets(tmp_path: Path) -> None:
    write_trial_row(str(tmp_path), trial("t0", 1.0, 5.0))
    rows = pd.DataFrame([{"trial": "t0", "task": "x", "target_loss": 0.15, "status": "ok", "edges": 5}])
    folder = tmp_path / "frontier" / "circuits"
    folder.mkdir()
    rows.astype({"target_loss": "float32"}).to_parquet(folder / "all.parquet")
    found = Frontier(str(tmp_path))
    assert found.pareto(target=0.15)["edges"].to_pylist() == pytest.approx([5])
    assert found.pareto()["edges"].to_pylist() == pytest.approx([5])


def test_who_stands_on_the_frontier(tmp_path: Path) -> None:
    for row in (
        trial("good", 1.0, 50.0),
        trial("small", 2.0, 5.0),
        trial("dominated", 2.5, 6.0),
        trial("diverged", 0.1, None, status="diverged"),
        trial("too_few_tasks", 0.5, 1.0, eligible=False),
    ):
        write_trial_row(str(tmp_path), row)
    found = Frontier(str(tmp_path))
    assert found.pareto()["trial"].to_pylist() == ["good", "small"]
    # By hand: log10 50 = 1.69897 and log10 5 = 0.69897 under 5, between losses 1, 2 and 4.
    assert found.hypervolume() == pytest.approx((2 - 1) * (5 - 1.69897) + (4 - 2) * (5 - 0.69897))
    assert found.hypervolume((2.0, 500.0)) == pytest.approx(1.0)
    assert REFERENCE == (4.0, 1e5)


def test_nobody_on_the_frontier_is_no_error(tmp_path: Path) -> None:
    write_trial_row(str(tmp_path), trial("t0", 2.0, None))
    found = Frontier(str(tmp_path))
    assert found.pareto().num_rows == 0
    assert found.hypervolume() == 0
    plot_frontier(found, str(tmp_path / "empty.png"))


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(POINTS)
def test_non_dominated_against_brute_force(points: list[tuple[float, float]]) -> None:
    def beats(p: tuple[float, float], q: tuple[float, float]) -> bool:
        return p[0] <= q[0] and p[1] <= q[1] and p != q

    expected = [i for i, q in enumerate(points) if not any(beats(p, q) for p in points)]
    assert sorted(non_dominated(points)) == expected


@given(POINTS)
def test_area_grows_point_by_point(points: list[tuple[float, float]]) -> None:
    expected = [dominated_area(points[: i + 1], (5, 5)) for i in range(len(points))]
    assert list(growing_area(points, (5, 5))) == expected


@given(POINTS)
def test_dominated_area_against_counting_squares(points: list[tuple[float, float]]) -> None:
    squares = sum(any(x <= i and y <= j for x, y in points) for i in range(5) for j in range(5))
    assert dominated_area(points, (5, 5)) == squares


def test_geometric_mean() -> None:
    assert geometric_mean_edges([]) is None
    assert geometric_mean_edges([4, 9]) == pytest.approx(6)


def test_picture(tmp_path: Path) -> None:
    rng = random.Random(0)
    for i in range(8):
        kind = ("sparse", "dense")[i % 2]
        write_trial_row(str(tmp_path), trial(f"t{i}", rng.uniform(1, 3), rng.uniform(5, 5000), kind=kind))
    for name, head in (("f.png", b"\x89PNG"), ("f.svg", b"<?xml"), ("f.pdf", b"%PDF")):
        plot_frontier(Frontier(str(tmp_path)), str(tmp_path / name))
        assert (tmp_path / name).read_bytes().startswith(head)
    with pytest.raises(InputError, match="allowed endings"):
        plot_frontier(Frontier(str(tmp_path)), str(tmp_path / "f.exe"))


def test_labels_hide_nothing_and_stay_inside(tmp_path: Path) -> None:
    """Neighbours near a front that runs between them, and the last point at the right edge."""
    for i, (kind, loss, edges) in enumerate(
        [("dense", 1.39, 100), ("dense", 1.44, 110), ("dense", 1.57, 85), ("sparse", 1.6, 13), ("sparse", 1.87, 12)]
    ):
        write_trial_row(str(tmp_path), trial(f"t{i}", loss, edges, kind=kind))
    figure = draw(Frontier(str(tmp_path)).compared())
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [text.get_window_extent() for text in axes.texts]
    assert len(labels) == 5
    assert all(axes.bbox.containsx(x) and axes.bbox.containsy(y) for label in labels for x, y in label.corners())
    assert not any(a.overlaps(b) for a, b in itertools.combinations(labels, 2))
    points = [point for dots in axes.collections for point in axes.transData.transform(dots.get_offsets())]
    assert len(points) == 5
    near = [label.padded(3) for label in labels]
    assert not any(label.contains(*point) for label in near for point in points)
    front = axes.transData.transform_path(axes.lines[0].get_path())
    assert not any(front.intersects_bbox(label, filled=False) for label in labels)
