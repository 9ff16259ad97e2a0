"""Mean curves over tasks, their table and picture."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_model.errors import InputError
from sweeps.cli import status_of
from sweeps.commands.curves import WAYS
from sweeps.frontier.queries import Frontier
from sweeps.frontier.rows import write_circuit_rows, write_trial_row
from sweeps.search.objectives import bootstrap_interval
from sweeps.show.curves import (
    TARGETS,
    Point,
    draw_curves,
    mean_curves,
    model_names,
    plot_curves,
    rows_of_model,
    sizes_of,
)
from sweeps.show.plot import draw


def row(trial: str, task: str, target: float, edges: int | None, method: str = "node") -> dict[str, Any]:
    found = {"task": task, "target_loss": target, "edges": edges, "method": method, "trial": trial, "study": "s"}
    return found | {"status": "ok" if edges is not None else "unsolved"}


def test_means_are_over_the_tasks_that_all_reach() -> None:
    a = {"x": {0.5: 4, 0.1: 9}, "y": {0.5: 16, 0.1: None}, "z": {0.5: 1}}
    b = {"x": {0.5: 40, 0.1: 90, 0.01: 7}, "y": {0.5: 160, 0.1: 3}}
    points = mean_curves({"a": a, "b": b}, (0.01, 0.1, 0.5))
    assert [(point.target, point.tasks) for point in points] == [(0.5, 2), (0.1, 1)]
    assert points[0].means == pytest.approx({"a": 8, "b": 80})
    assert points[1].means == pytest.approx({"a": 9, "b": 90})


def test_methods_and_unsolved_tasks_are_kept_apart() -> None:
    rows = [row("t", "x", 0.5, 7), row("t", "x", 0.5, 3, "edge"), row("t", "y", 0.5, None)]
    assert sizes_of(rows, "node") == {"x": {0.5: 7}}
    assert sizes_of(rows, "edge") == {"x": {0.5: 3}}


def test_a_studys_rows_are_compared_without_a_search_of_their_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for trial, factor in (("lean", 1), ("wide", 16)):
        rows = [
            row(trial, "else_elif", target, factor * edges, method)
            for target, edges in ((0.5, 2), (0.15, 5), (0.04, 9))
            for method in ("node", "edge")
        ]
        write_circuit_rows(str(tmp_path), trial, rows)
        write_trial_row(str(tmp_path), {"study": "s", "trial": trial, "status": "ok"})
    picture = tmp_path / "curve.png"
    models = [str(tmp_path / "models" / trial) for trial in ("lean", "wide")]
    assert status_of(["curves", *models, "--plot", str(picture)]) == 0
    said = capsys.readouterr().out
    assert said.count("16.0 x") == 6
    assert "wide: rows hold 1 of 20 tasks; --tasks searches others" in said
    searched: list[str] = []

    def search(search: Any, uri: str, name: str, study: Any, tasks: list[str], show: Any) -> dict[str, Any]:
        searched.append(f"{name} {' '.join(tasks)}")
        return {task: {"node": {0.5: 3, 0.15: 6}, "edge": {0.5: 3, 0.15: 6}} for task in tasks}

    monkeypatch.setattr("sweeps.commands.curves._by_task", search)
    assert status_of(["curves", *models, "--tasks", "else_elif,with_as"]) == 0
    assert searched == ["lean with_as", "wide with_as"]
    assert capsys.readouterr().out.count("4.0 x") == 4  # geometric mean of 16 and 1, where both tasks reach the loss
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("methods", [["node"], ["node", "edge"]])
def test_the_names_of_the_curves_hide_none_and_no_word_leaves_the_picture(methods: list[str]) -> None:
    names = WAYS
    points = [Point(target, dict.fromkeys(names, (10, 4000))) for target in TARGETS]
    figure = draw_curves(dict.fromkeys(methods, points), "Learned masks against baselines: t00000-33693f6c")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(names)
    assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)
    inside = figure.bbox.padded(1)
    for text in (*figure.texts, *legend.get_texts()):
        extent = text.get_window_extent()
        assert inside.contains(extent.x0, extent.y0), text.get_text()
        assert inside.contains(extent.x1, extent.y1), text.get_text()


def test_models_are_named_by_what_they_are(tmp_path: Path) -> None:
    sparse = {"kind": "sparse", "d_model": 128, "fraction": 0.0601}
    for trial, more in (("a", sparse), ("b", {"kind": "dense", "d_model": 32, "fraction": 1.0}), ("c", sparse)):
        write_trial_row(str(tmp_path), {"study": "s", "trial": trial, "status": "ok", **more})
    a, b, c = (str(tmp_path / "models" / trial) for trial in "abc")
    assert model_names([a, b]) == ["sparse · 128 · 0.06", "dense · 32"]
    assert model_names([a, c]) == ["sparse · 128 · 0.06 · a", "sparse · 128 · 0.06 · c"]
    assert model_names(["x/one", "y/one", "y/two"]) == ["one · x/one", "one · y/one", "two"]


@pytest.mark.parametrize("version", ["schema_version", "search_version"])
def test_sizes_of_another_version_are_not_taken(version: str, tmp_path: Path) -> None:
    write_circuit_rows(str(tmp_path), "t", [row("t", "else_elif", 0.15, 5)])
    model = str(tmp_path / "models" / "t")
    (kept,) = rows_of_model(model)
    assert kept["edges"] == 5
    (file,) = tmp_path.rglob("*.parquet")
    rows = pq.read_table(file)
    place = rows.schema.get_field_index(version)
    pq.write_table(rows.set_column(place, rows.schema.field(place), pa.array([kept[version] - 1])), file)
    assert rows_of_model(model) == []


def test_nothing_to_draw_and_bad_endings_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        plot_curves({"node": []}, str(tmp_path / "x.png"), "t")
    with pytest.raises(InputError, match="allowed endings"):
        plot_curves({"node": [Point(0.5, {"a": (1,)})]}, str(tmp_path / "x.exe"), "t")


def test_commands_on_a_trained_model(
    study_text: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = tmp_path / "tiny.yaml"
    changes = {"trial.training.tokens": 100_000, "trial.training.lr": 0.1, "target_losses": [0.6]}
    study.write_text(study_text(changes | {"pruning": {"pairs": 8, "steps": 30, "solved_loss": 3.0}}))
    common = ["--study", str(study), "--storage", str(tmp_path)]
    size = ["--set", "kind=dense", "--set", "model.d_model=32", "--set", "training.lr=0.1"]
    model = str(tmp_path / "model")
    assert status_of(["train", model, *common, *size]) == 0
    capsys.readouterr()
    rows = tmp_path / "baselines.parquet"
    assert status_of(["baselines", model, *common, "--tasks", "else_elif", "--rows", str(rows)]) == 0
    written = pq.read_table(rows).to_pylist()
    assert {(row["model"], row["task"]) for row in written} == {("model", "else_elif")}
    assert {"learned", "attribution", "random"} <= {row["way"] for row in written} <= set(WAYS)
    assert status_of(["baselines", model, *common, "--rows", str(tmp_path / "rows.csv")]) == 2
    said = capsys.readouterr().out
    assert "CPR" in said
    assert "edge attribution" in said
    assert status_of(["curves", model, model, *common, "--tasks", "else_elif"]) == 0
    assert "x" not in capsys.readouterr().out.split("edge-pruned")[1].replace("95 % bootstrap", ""), "no edge, no count"
    assert status_of(["curves", model, model, *common, "--tasks", "nonsense"]) == 2
    pairs = [
        {"prompt_a": f"x = {n}\n" * 100 + "for x", "answer_a": " in", "prompt_b": f"while x < {n}", "answer_b": ":"}
        for n in range(4)
    ]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for command in (["curves", model, model], ["baselines", model]):
        assert status_of([*command, *common, "--tasks", str(tmp_path / "long.jsonl")]) == 2
        assert "task long: prompts of up to" in capsys.readouterr().err
    _nothing_is_searched_twice(model, common, tmp_path, capsys, monkeypatch)


def _nothing_is_searched_twice(
    model: str, common: list[str], root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept sizes take the place of a search unless they cannot be read or something else is asked for."""
    searched: list[str] = []

    def search(prune: Any, task: str) -> dict[str, Any]:
        searched.append(task)
        return {"node": {0.5: 5, 0.15: 7}, "edge": {0.5: 3, 0.15: 4}}

    search.__name__ = "_methods"
    monkeypatch.setattr("sweeps.commands.curves._methods", search)
    monkeypatch.setattr("sweeps.engine.parallel.cpu_count", lambda: 1)
    both = ["curves", model, model, *common, "--tasks", "else_elif,with_as"]
    assert status_of(both) == 0
    assert searched == ["with_as"]
    assert "1 of 2 tasks were searched before" in capsys.readouterr().out
    (kept,) = (root / "data" / "curves").glob("with_as-*.json")
    kept.write_text("{")
    assert status_of(both) == 0
    assert searched == ["with_as", "with_as"]
    study = Path(common[1])
    study.write_text(study.read_text().replace("steps: 30", "steps: 31"))
    assert status_of(both) == 0
    assert searched[2:] == ["else_elif", "with_as"]
    monkeypatch.setattr("sweeps.show.curve_store.SEARCH_VERSION", 0)  # sizes of another search
    assert status_of(both) == 0
    assert searched[4:] == ["else_elif", "with_as"]


def test_intervals_are_of_draws_of_tasks_with_replacement() -> None:
    edges = [3, 40, 7, 90, 12]
    draws = list(itertools.product(edges, repeat=5))  # every draw there is
    means = np.exp(np.log(draws).mean(1))
    low, high = bootstrap_interval(edges) or (0, 0)
    assert (low, high) == pytest.approx(np.percentile(means, (2.5, 97.5)), rel=0.05)
    assert bootstrap_interval(edges) == (low, high)
    assert bootstrap_interval([5]) is None
    assert bootstrap_interval([5, 5, 5]) == pytest.approx((5, 5))


def test_a_ratios_interval_pairs_the_tasks() -> None:
    """Tasks differ a hundredfold in size, and in nothing in their ratio."""
    point = Point(0.15, {"a": (1, 10, 100), "b": (4, 40, 400)})
    assert point.tasks == 3
    ratio, interval = point.ratio
    assert ratio == pytest.approx(4)
    assert interval == pytest.approx((4, 4))
    assert (point.intervals["a"] or (0, 0))[0] < 5


@pytest.mark.parametrize("seed", [2, 13, 15])  # labels of these left the axes
def test_labels_of_trials_never_leave_the_axes_of_a_frontier(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    for i in range(rng.choice([1, 2, 5, 12])):
        kind, near = rng.choice(["sparse", "dense"]), 1.5 + rng.random() * 0.01
        loss, edges = rng.choice([1.5, near, rng.uniform(1, 3)]), 10 ** rng.uniform(0, 4)
        shown = {"kind": kind, "val_loss": loss, "circuit_edges": edges, "d_model": 1024, "fraction": 0.000123}
        row = {"study": "s", "trial": f"t{i}", "status": "ok", "eligible": True, "tasks_solved": 17, "tasks_tried": 20}
        write_trial_row(str(tmp_path), row | shown)
    figure = draw(Frontier(str(tmp_path)).compared())
    figure.draw_without_rendering()
    (axes,) = figure.axes
    box = axes.get_window_extent().padded(1)
    assert axes.texts
    for text in axes.texts:
        extent = text.get_window_extent()
        assert box.contains(extent.x0, extent.y0), text.get_text()
        assert box.contains(extent.x1, extent.y1), text.get_text()
