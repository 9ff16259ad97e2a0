"""Like with like: common tasks, Pareto fronts on them, two groups at equal loss. Cases planted, answers known."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from sparse_model.errors import InputError
from sweeps.frontier.comparison import Comparison, largest_block
from sweeps.frontier.matched import TrialGroup
from sweeps.frontier.pareto import non_dominated
from sweeps.frontier.queries import Frontier
from sweeps.frontier.rows import write_circuit_rows, write_trial_row
from sweeps.show.text import frontier_table

Edges = dict[str, int | None]


def plant(
    root: Path, key: str, loss: float, edges: Edges, *, targets: Any = (0.15,), heldout: float = 1.0, **more: Any
) -> None:
    """A trial whose circuits have these edges at every target (None: unsolved), and on held-out pairs `heldout` times
    the target; its own mean is a decoy."""
    row = {"study": "s", "trial": key, "kind": "sparse", "status": "ok", "eligible": True, "val_loss": loss}
    row |= {"circuit_edges": 1.0, "target_loss": 0.15, "tasks_tried": len(edges), "data": "d"}
    circuits = [
        {"study": "s", "trial": key, "task": task, "target_loss": target, "method": "node", "edges": n}
        | {"status": "unsolved" if n is None else "ok", "heldout_loss": heldout * target}
        for task, n in edges.items()
        for target in targets
    ]
    study = more.get("study", "s")
    write_circuit_rows(str(root), key, [row | {"study": study} for row in circuits])
    write_trial_row(str(root), row | more)


def test_circuits_that_fail_on_held_out_pairs_or_have_no_edge_are_in_no_comparison(tmp_path: Path) -> None:
    plant(tmp_path, "a", 2.0, {"x": 8, "y": 2, "z": 0})
    plant(tmp_path, "b", 3.0, {"x": 2, "y": 8, "z": 5})
    plant(tmp_path, "memorised", 1.0, {"x": 1, "y": 1, "z": 1}, heldout=2.0)
    comparison = Frontier(str(tmp_path)).compared()
    assert comparison.tasks == ("x", "y")
    assert comparison.compared.tolist() == [True, True, False]
    assert comparison.edges[:2].tolist() == pytest.approx([4, 4])
    assert "hold on held-out pairs and have an edge" in comparison.note()


def test_models_are_compared_on_tasks_that_all_of_them_solve(tmp_path: Path) -> None:
    """`lazy` solves the easy task only. Its own mean (2) betters all; on what is common it does not."""
    plant(tmp_path, "good", 2.0, {"easy": 2, "hard": 200, "other": 9})
    plant(tmp_path, "small", 3.0, {"easy": 1, "hard": 100, "other": 1})
    plant(tmp_path, "worse", 3.1, {"easy": 4, "hard": 100, "other": None})
    plant(tmp_path, "lazy", 4.0, {"easy": 2, "hard": None, "other": None})
    found = Frontier(str(tmp_path))
    comparison = found.compared()
    assert comparison.tasks == ("easy", "hard")  # 3 pairs x 2 tasks, not 6 x 1 or 1 x 3; of equals, more tasks
    assert found.pareto()["trial"].to_pylist() == ["good", "small"]
    assert found.pareto()["edges"].to_pylist() == pytest.approx([20, 10])
    assert "2 tasks (of 3) that all 3 compared trials solve at loss 0.15: easy, hard" in comparison.note()
    assert "1 of 4 trials are not compared" in comparison.note()
    on_easy = found.compared(tasks=["easy"])
    assert on_easy.compared.all()
    assert found.pareto(tasks=["easy"])["trial"].to_pylist() == ["good", "small"]
    text = frontier_table(comparison, "title", 120)
    assert "that all 3 compared trials solve" in str(text.caption)


def test_target_method_and_condition(tmp_path: Path) -> None:
    plant(tmp_path, "a", 2.0, {"x": 8}, targets=(0.15, 0.05))
    plant(tmp_path, "b", 3.0, {"x": 4})
    plant(tmp_path, "bad", 1.0, {"x": 1}, eligible=False)
    found = Frontier(str(tmp_path))
    assert found.pareto()["trial"].to_pylist() == ["a", "b"]
    assert found.pareto(target=0.05)["trial"].to_pylist() == ["a"]
    assert found.pareto(where="val_loss > 2.5")["trial"].to_pylist() == ["b"]
    for choice, words in (
        ({"target": 0.2}, "there are circuits at 0.05, 0.15"),
        ({"tasks": ["y"]}, "task 'y'; solved at this loss: x"),
        ({"method": "edge"}, "there are circuits of node"),
    ):
        with pytest.raises(InputError, match=words):
            found.pareto(**choice)  # type: ignore[arg-type]


@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 5))))
def test_block_is_solved_and_no_smaller_than_any_prefix(solved: Any) -> None:
    chosen = largest_block(solved)
    if not solved.any():
        assert chosen == []
        return
    rows = int(solved[:, chosen].all(axis=1).sum())
    most, everyone = int(solved.sum(axis=0).max()), int(solved.all(axis=0).sum())
    assert rows >= 1
    assert rows * (rows - 1) * len(chosen) >= max(most * (most - 1), len(solved) * (len(solved) - 1) * everyone)


def test_equal_loss_ratio_of_a_planted_factor(tmp_path: Path) -> None:
    """Dense edges are exactly 16 times the sparse ones at every loss, on every task, whichever seeds are drawn."""
    for i, loss in enumerate(np.linspace(2.0, 3.0, 5)):
        for kind, factor, shift in (("sparse", 1, 0.0), ("dense", 16, 0.1)):
            # log edges fall straight with loss, so that interpolation is exact
            edges = {t: round(factor * base * 1e6 * math.exp(-2 * (loss + shift))) for t, base in (("x", 1), ("y", 7))}
            plant(tmp_path, f"{kind}{i}", loss + shift, edges, kind=kind, suggestion=2 * i + (kind == "dense"))
    found = Frontier(str(tmp_path))
    table = found.matched("kind = 'sparse'", "kind = 'dense'").to_pylist()
    assert [row["val_loss"] for row in table[:-1]] == pytest.approx([2.1, 2.325, 2.55, 2.775, 3.0])
    assert table[-1]["val_loss"] is None
    for row in table:
        assert row["ratio"] == pytest.approx(16, rel=1e-3)
        assert row["ratio_low"] == pytest.approx(16, rel=1e-3)
        assert row["ratio_high"] == pytest.approx(16, rel=1e-3)
    back = found.matched("kind = 'dense'", "kind = 'sparse'").to_pylist()
    assert back[0]["ratio"] == pytest.approx(1 / 16, rel=1e-3)


def test_intervals_widen_with_tasks_that_disagree_and_with_seeds(tmp_path: Path) -> None:
    for i, loss in enumerate((2.0, 3.0)):
        plant(tmp_path, f"s{i}", loss, {"x": 100 - 50 * i, "y": 100 - 50 * i}, suggestion=i)
        edges = {"x": 400 - 200 * i, "y": 10_000 - 5000 * i}
        plant(tmp_path, f"d{i}", loss, edges, kind="dense", suggestion=10 + i)
    last = Frontier(str(tmp_path)).matched("kind = 'sparse'", "kind = 'dense'").to_pylist()[-1]
    assert (last["ratio_low"], last["ratio"], last["ratio_high"]) == pytest.approx((4, 20, 100))
    before = last["ratio_high"]
    plant(tmp_path, "d1b", 3.0, {"x": 200, "y": 50_000}, kind="dense", suggestion=11)
    last = Frontier(str(tmp_path)).matched("kind = 'sparse'", "kind = 'dense'").to_pylist()[-1]
    assert last["ratio_high"] > before


def test_groups_that_cannot_be_compared(tmp_path: Path) -> None:
    plant(tmp_path, "a", 2.0, {"x": 8})
    plant(tmp_path, "b", 3.0, {"x": 4}, kind="dense")
    found = Frontier(str(tmp_path))
    with pytest.raises(InputError, match=r"no validation loss in common \(kind = 'sparse' 2.000 to 2.000"):
        found.matched("kind = 'sparse'", "kind = 'dense'")
    with pytest.raises(InputError, match="no trial of this group"):
        found.matched("kind = 'sparse'", "kind = 'odd'")
    with pytest.raises(InputError, match="1 trials are in both groups"):
        found.matched("kind = 'sparse'", "val_loss < 2.5")


def test_a_group_is_compared_up_to_its_highest_loss_though_its_front_ends_before(tmp_path: Path) -> None:
    """The narrower dense model is worse in both, so the front is the wider one alone; the group reaches 2.4 all the
    same, with 100 edges at the most."""
    plant(tmp_path, "wide", 1.8, {"x": 100}, kind="dense")
    plant(tmp_path, "narrow", 2.4, {"x": 300}, kind="dense")
    plant(tmp_path, "a", 2.0, {"x": 10})
    plant(tmp_path, "b", 2.2, {"x": 5})
    table = Frontier(str(tmp_path)).matched("kind = 'sparse'", "kind = 'dense'").to_pylist()
    assert [row["val_loss"] for row in table[:-1]] == pytest.approx([2.0, 2.05, 2.1, 2.15, 2.2])
    assert [row["edges_second"] for row in table] == pytest.approx([100] * 6)
    assert (table[0]["ratio"], table[-2]["ratio"]) == pytest.approx((10, 20))


def test_groups_are_compared_on_tasks_that_leave_them_a_loss_in_common(tmp_path: Path) -> None:
    """Without `poor` there would be four tasks, and nothing to compare: then `a` is worse than all dense ones."""
    every = {"x": 10, "y": 10, "z": 10, "w": 10}
    plant(tmp_path, "a", 2.0, every)
    plant(tmp_path, "good", 1.9, {task: 10 * n for task, n in every.items()}, kind="dense")
    plant(tmp_path, "poor", 2.2, {**dict.fromkeys(every), "x": 60}, kind="dense")
    found = Frontier(str(tmp_path))
    assert found.between("kind = 'sparse'", "kind = 'dense'").tasks == ("x",)
    assert found.matched("kind = 'sparse'", "kind = 'dense'")["val_loss"].to_pylist() == [pytest.approx(2.0), None]


def test_trials_that_are_not_needed_for_a_common_loss_take_no_tasks_away(tmp_path: Path) -> None:
    every = {"x": 10, "y": 10, "z": 10, "w": 10}
    for i, loss in enumerate((1.9, 2.1)):
        plant(tmp_path, f"s{i}", loss, every)
        plant(tmp_path, f"d{i}", loss + 0.1, dict.fromkeys(every, 40), kind="dense")
    plant(tmp_path, "weak", 3.0, {**dict.fromkeys(every), "x": 1}, kind="dense")
    for i in range(9):  # of neither group
        plant(tmp_path, f"other{i}", 2.0, {**dict.fromkeys(every), "x": 1}, kind="odd")
    found = Frontier(str(tmp_path))
    comparison = found.between("kind = 'sparse'", "kind = 'dense'")
    assert comparison.tasks == tuple(sorted(every))
    assert "4 tasks (of 4) that all 4 compared trials solve" in comparison.note()
    assert "1 of 5 trials are not compared" in comparison.note()
    assert found.compared().tasks == ("x",)
    last = found.matched("kind = 'sparse'", "kind = 'dense'").to_pylist()[-1]
    assert (last["ratio_low"], last["ratio"], last["ratio_high"]) == pytest.approx((4, 4, 4))


def test_a_common_loss_is_one_of_means_over_seeds(tmp_path: Path) -> None:
    """Single seeds overlap in `y`, their means do not: of configurations only `x` is left."""
    both = {"x": 10, "y": 10, "z": 10}
    plant(tmp_path, "s0", 2.0, both, suggestion=0)
    plant(tmp_path, "s1", 2.4, both, suggestion=0)
    plant(tmp_path, "s2", 2.6, {"x": 10, "y": None, "z": None}, suggestion=1)
    plant(tmp_path, "d0", 2.3, both, kind="dense", suggestion=2)
    found = Frontier(str(tmp_path))
    assert found.between("kind = 'sparse'", "kind = 'dense'").tasks == ("x",)
    assert len(found.matched("kind = 'sparse'", "kind = 'dense'")) == 2


def test_rows_of_another_program(tmp_path: Path) -> None:
    """One file with many trials, written with pandas, with the columns that matter and no others."""
    trials = pd.DataFrame(
        {
            "trial": ["a", "b", "c", "d"],
            "kind": pd.Categorical(["sparse", "sparse", "dense", "dense"]),
            "status": ["ok", "ok", "ok", "failed"],
            "val_loss": [2.0, 3.0, 2.0, 1.0],
            "circuit_edges": [8, 4, 80, None],
        }
    )
    circuits = pd.DataFrame(
        {"trial": ["a", "b", "c"], "task": "x", "target_loss": 0.15, "status": "ok", "edges": [8, 4, 80]}
    )
    for name, table in {"trials": trials, "circuits": circuits}.items():
        folder = tmp_path / "frontier" / name
        folder.mkdir(parents=True)
        if name == "trials":
            table.to_parquet(folder / "theirs.parquet")
            assert Frontier(str(tmp_path)).pareto()["trial"].to_pylist() == ["a", "b"]
    circuits.to_parquet(tmp_path / "frontier" / "circuits" / "theirs.parquet")
    found = Frontier(str(tmp_path))
    assert found.compared().tasks == ("x",)
    assert found.pareto(method="node")["edges"].to_pylist() == pytest.approx([8, 4])
    assert found.matched("kind = 'sparse'", "kind = 'dense'").to_pylist()[0]["ratio"] == pytest.approx(10)


@given(
    arrays(np.int64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 5)),
    st.lists(st.integers(0, 4), min_size=12, max_size=12),
)
def test_the_front_of_a_group_is_that_of_its_means_over_seeds(points: Any, configs: list[int]) -> None:
    configs = configs[: len(points)]
    trials = pa.table({"study": ["s"] * len(points), "suggestion": configs, "val_loss": points[:, 0].astype(float)})
    everyone = np.ones(len(points), dtype=bool)
    comparison = Comparison(trials, ("x",), 1, 0.15, points[:, 1:].astype(float), everyone)
    means = [tuple(points[np.array(configs) == c].mean(axis=0)) for c in sorted(set(configs))]
    x, y = TrialGroup(comparison, "all", everyone).front(np.ones(1))
    assert list(zip(x, y, strict=True)) == sorted({means[i] for i in non_dominated(means)})


def test_a_condition_may_leave_one_of_several_studies(tmp_path: Path) -> None:
    plant(tmp_path / "a", "t0", 2.0, {"x": 8}, study="a")
    plant(tmp_path / "b", "t0", 3.0, {"x": 4}, study="b")
    found = Frontier(str(tmp_path / "a"), str(tmp_path / "b"))
    assert found.pareto(where="study = 'b'")["edges"].to_pylist() == pytest.approx([4])
    with pytest.raises(InputError, match="no validation loss in common"):
        found.matched("study = 'a'", "study = 'b'")
    with pytest.raises(InputError, match="1 trials are in both groups"):
        found.matched("study = 'a'", "study = 'a'")


def test_hypervolume_over_time_is_in_order_of_finishing(tmp_path: Path) -> None:
    for key, loss, edges, minute in (("t0", 2.0, 100, 3), ("t1", 3.0, 10, 1), ("t2", 3.0, 1000, 2)):
        plant(tmp_path, key, loss, {"x": edges}, finished=datetime(2026, 1, 1, 0, minute, tzinfo=UTC))
    table = Frontier(str(tmp_path)).hypervolume_over_time()
    assert table["trial"].to_pylist() == ["t1", "t2", "t0"]
    assert table["hypervolume"].to_pylist() == pytest.approx([4, 4, 4 + 3])
    assert table["hypervolume"][-1].as_py() == pytest.approx(Frontier(str(tmp_path)).hypervolume())


def test_several_studies_at_once(tmp_path: Path) -> None:
    plant(tmp_path / "a", "t0", 2.0, {"x": 8}, study="a")
    plant(tmp_path / "b", "t0", 3.0, {"x": 4}, study="b", data="other")
    found = Frontier(str(tmp_path / "a"), str(tmp_path / "b"))
    assert [(row["study"], row["edges"]) for row in found.pareto().to_pylist()] == [
        ("a", pytest.approx(8)),
        ("b", pytest.approx(4)),
    ]
    assert "CAUTION: trained on 2 different texts" in found.compared().note()
    with pytest.raises(InputError, match="is there twice"):
        Frontier(str(tmp_path / "a"), str(tmp_path / "a"))
    plant(tmp_path / "c", "t0", 2.0, {"x": 8}, study="a")
    with pytest.raises(InputError, match="trial t0 of study a is in several of the folders"):
        Frontier(str(tmp_path / "a"), str(tmp_path / "c")).trials()


def test_two_models_are_compared_however_little_they_share(tmp_path: Path) -> None:
    plant(tmp_path, "able", 2.0, {"x": 8, "y": 900, "z": 900})
    plant(tmp_path, "weak", 3.0, {"x": 9, "y": None, "z": None})
    found = Frontier(str(tmp_path))
    assert found.compared().tasks == ("x",)
    assert found.pareto()["trial"].to_pylist() == ["able"]
