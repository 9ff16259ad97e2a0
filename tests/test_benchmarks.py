"""Every benchmark runs and prints what it promises; its times are nobody's business here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit.ablated.ablation import mean_activations
from circuit.graph.edges import count_edges
from circuit.search.evaluation import Judge
from circuit.tasks import PairBatch
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.sparsity.selection import keep_mask
from sweeps.cli import status_of
from sweeps.study.study import load_study

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
PARTS = {"projection_ms", "projection_min_alive_ms", "abstopk_ms", "attention_ms", "adamw_ms"}
PLAIN = {"plain_dense_bfloat16_ms", "plain_dense_float32_ms"}
RATIOS = {"sparse_over_plain_dense", "sparse_over_released"}
STEP_FIGURES = {"dense_ms", "sparse_ms", "released_ms", "processor", "threads", "dtype"} | RATIOS | PLAIN | PARTS


def run(script: str, out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, FOLDER / script, "--json", out, *options]
    ended = subprocess.run(list(map(str, command)), capture_output=True, timeout=280, text=True)
    assert ended.returncode == 0, ended.stderr
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures


def test_train_step(tmp_path: Path) -> None:
    figures = run("train_step.py", tmp_path / "figures.json", "--rounds", "1", "--shape", "tiny")
    assert figures.keys() == STEP_FIGURES
    fastest_plain = min(figures[name] for name in PLAIN)
    assert figures["sparse_over_plain_dense"] == pytest.approx(figures["sparse_ms"] / fastest_plain)


@pytest.mark.parametrize("name", ["layers.0.mlp.up.weight", "layers.0.mlp.down.weight", "embedding.weight"])
def test_what_is_timed_as_the_authors_step_keeps_what_ours_does(name: str) -> None:
    from released import MIN_ALIVE, project_as_released

    weight = torch.randn(24, 32) * torch.randn(24, 1).exp() * torch.randn(32).exp()
    alive, by_column = (0, False) if "embedding" in name else (MIN_ALIVE, "down" in name)
    expected = weight * keep_mask(weight, int(0.25 * weight.numel()), alive, by_column)
    project_as_released(name, weight, 0.25)
    assert torch.equal(weight, expected)


def test_report_page(tmp_path: Path) -> None:
    if not os.environ.get("CI") and not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("no chromium here; in CI the benchmark itself refuses")
    figures = run("report_page.py", tmp_path / "figures.json", "--trials", "20", "40", "--rounds", "1")
    assert figures["20"].keys() == {"megabytes", "open_s", "frame_ms"}
    assert figures["20"]["megabytes"] < figures["40"]["megabytes"]


def test_kernels(tmp_path: Path) -> None:
    figures = run("kernels.py", tmp_path / "figures.json", "--rounds", "1")
    assert figures.keys() == {"abstopk", "abstopk_1024", "projection_4M", "attention", "loss"}


def test_gpu_sections_run_on_a_cpu_at_toy_size(tmp_path: Path) -> None:
    """So that nothing but the device is new where there is one."""
    figures = run("gpu.py", tmp_path / "figures.json", "--minutes", "4")
    failed = {name: told["error"] for name, told in figures.items() if "error" in told}
    assert not failed
    assert list(figures) == [
        "device", "kernels", "train_step_small", "training", "projection", "train_step_paper", "mask_learning_paper",
        "fsdp", "pruning",
    ]  # fmt: skip
    assert figures["kernels"]["wrong"] == []
    assert figures["training"]["resumed_bit_for_bit"]
    assert figures["training"]["l0"] == figures["training"]["l0_budget"]
    assert figures["fsdp"]["largest_difference"] == 0


def test_gpu_says_what_it_needs() -> None:
    done = subprocess.run([sys.executable, FOLDER / "gpu.py", "--needs"], capture_output=True, text=True, timeout=60)
    assert "pydantic" in done.stdout.split()


def test_prune(tmp_path: Path, study_text: Callable[..., str]) -> None:
    """From models trained by the benchmark itself: figures of a task, their geometric means, and honest ratios."""
    study = tmp_path / "tiny.yaml"
    study.write_text(study_text({"trial.training.tokens": 40_000, "trial.training.lr": 0.1}))
    small = ["--study", str(study), "--storage", str(tmp_path), "--train", "kind=dense,model.d_model=32"]
    short = ["--tasks", "else_elif", "--pairs", "4", "--steps", "5", "--tuning", "2", "--timed-steps", "1"]
    figures = run("prune.py", tmp_path / "figures.json", *small, *short, "--target", "0.68", "--solved", "9")
    assert figures["options"]["restarts"] == 1, "the study's"
    dense = figures["models"]["dense"]
    task = dense["else_elif"]
    keys = ["recipe_seconds", "ours_seconds", "speedup", "recipe_edges", "ours_edges", "edges_ratio"]
    keys += [f"{way}_heldout_loss" for way in ("recipe", "recipe_eliminated", "ours")]
    assert set(keys) <= task.keys() == dense["geometric_mean"].keys()
    assert task["recipe_eliminated_edges"] <= task["recipe_edges"]
    assert task["speedup"] == pytest.approx(task["recipe_seconds"] / task["ours_seconds"])
    assert task["recipe_seconds"] == pytest.approx(2 * task["recipe_seconds_untuned"])
    assert task["edges_ratio"] == pytest.approx(max(1, task["ours_edges"]) / max(1, task["recipe_edges"]))


def test_the_recipe_is_the_same_from_answer_positions_only() -> None:
    """Sizes in the benchmark come from a faster forward pass: its masks and its circuit are those of the plain one."""
    import paper_recipe
    import prune

    torch.manual_seed(0)
    model = SparseTransformer(ModelConfig(vocab_size=30, context=16, n_layer=2, d_model=16, d_head=8))
    tokens, length = torch.randint(0, 30, (60, 9)), torch.randint(4, 10, (60,))
    length[0] = 9
    right = torch.randint(0, 30, (60,))
    data = PairBatch(tokens, length, right, (right + 1) % 30)
    means = mean_activations(model, [torch.randint(0, 30, (8, 16))])
    settings = paper_recipe.Settings(steps=30, lr=0.03, batch_pairs=4, k_coef=1e-3)
    plain = paper_recipe.plain_forward(model, data, means)
    found = [paper_recipe.learn(data, means, settings, f) for f in (plain, prune.answers_only(model, data, means))]
    for name, tau in found[0].items():
        torch.testing.assert_close(found[1][name], tau, rtol=1e-3, atol=1e-3)
    judge = Judge(model, means, data)
    gates = {name: (tau > 0).float() for name, tau in found[0].items()}
    keep = torch.cat(list(gates.values())) > 0
    loss = paper_recipe.calibrated_loss(data, gates, plain)
    assert loss == pytest.approx(judge.calibrated(keep)[0], rel=1e-3, abs=1e-4)
    assert loss > 0.01
    kept = judge.index.channels(keep)
    assert paper_recipe.count_edges(model, kept) == count_edges(model, kept) > 0


def test_data(tmp_path: Path) -> None:
    figures = run("data.py", tmp_path / "figures.json", "--megabytes", "1", "--workers", "2")
    assert figures.keys() == {
        "tokenise_one_core_mb_s",
        "tokenise_one_process_mb_s",
        "tokenise_processes_mb_s",
        "load_local_mtok_s",
        "load_cached_mtok_s",
        "workers",
    }


def test_frontier_query(tmp_path: Path) -> None:
    options = ("--trials", "60", "--small-files", "6", "--rounds", "1")
    figures = run("frontier_query.py", tmp_path / "figures.json", *options)
    for place in ("local", "s3"):
        assert figures[place]["warm_s"].keys() == {"pareto", "pareto_5_tasks", "filter", "sql"}


@pytest.mark.cluster
def test_sweep_scale(tmp_path: Path) -> None:
    (figures,) = run("sweep_scale.py", tmp_path / "figures.json", "--trials", "12")["sizes"]
    assert figures["trials"] == 12
    assert figures["files"] >= 2
    assert figures["requests"] > 2
    assert all(figures[name] > 0 for name in ("driver_s", "search_s", "replay_s", "memory_mb"))


def test_faithful(tmp_path: Path, study_text: Callable[..., str]) -> None:
    """Of one circuit: ratios are those of its rows, and the worst subset is no better than the mean."""
    study = tmp_path / "tiny.yaml"
    study.write_text(study_text({"trial.training.tokens": 40_000, "trial.training.lr": 0.1}))
    place = ["--study", str(study), "--storage", str(tmp_path)]
    assert status_of(["train", str(tmp_path / "m"), *place, "--set", "kind=dense", "--set", "model.d_model=32"]) == 0
    small = [*place, "--tasks", "else_elif", "--seeds", "0", "--draws", "5", "--judged", "2", "--target", "0.6"]
    figures = run("faithful.py", tmp_path / "figures.json", str(tmp_path / "m"), *small)
    assert figures["circuits"] == len(figures["rows"]) == 1
    row = figures["rows"][0]
    assert figures["edges_ratio"] == pytest.approx(max(1, row["faithful_edges"]) / max(1, row["node_edges"]))
    assert row["node_worst"] >= row["node_mean"]


def test_recipes(tmp_path: Path, study_text: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    """What `sweeps train` makes of the study's own recipe, and what another value of a field it fixes makes."""
    study = tmp_path / "tiny.yaml"
    study.write_text(study_text({"trial.training.tokens": 40_000, "trial.training.lr": 0.1}))
    place = ["--study", str(study), "--storage", str(tmp_path)]
    recipe = ["kind=dense", "model.d_model=32", "training.lr=0.1,0.02"]
    assert status_of(["train", str(tmp_path / "m"), *place, "--set", recipe[0], "--set", recipe[1]]) == 0
    own, other = run("recipes.py", tmp_path / "figures.json", *place, *recipe)["rows"]
    assert f"validation loss {own['val_loss']:.4f} nats" in capsys.readouterr().out
    assert own["val_loss"] != other["val_loss"]
    for row in (own, other):
        assert row["tasks"] + len(row["undone"]) == len(load_study(str(study)).task_sources)
        assert all(loss > 0.15 for loss in row["undone"].values())


def test_heuristics(tmp_path: Path, study_text: Callable[..., str]) -> None:
    """Everything is searched with each heuristic taken away, and put back after."""
    study = tmp_path / "tiny.yaml"
    study.write_text(study_text({"trial.training.tokens": 40_000, "trial.training.lr": 0.1}))
    place = ["--study", str(study), "--storage", str(tmp_path)]
    assert status_of(["train", str(tmp_path / "m"), *place, "--set", "kind=dense", "--set", "model.d_model=32"]) == 0
    small = [*place, "--tasks", "else_elif", "--seeds", "0", "--target", "0.6"]
    figures = run("heuristics.py", tmp_path / "figures.json", str(tmp_path / "m"), *small)
    edges = {row["without"]: row["edges"] for row in figures["rows"]}
    assert len(edges) == 1 + len(figures["earned"])
    for what, told in figures["earned"].items():
        assert told["edges"]["ratio"] == pytest.approx(max(1, edges[what]) / max(1, edges["with everything"]))
