"""What a study will take, before anything is spent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_model.model.transformer import SparseTransformer
from sparse_model.training.measures import flops_per_token
from sparse_model.training.memory import activation_bytes
from sweeps.cli import status_of
from sweeps.frontier.rows import write_circuit_rows, write_trial_row
from sweeps.show.planning import (
    PRUNE_SECONDS,
    assumed_throughput,
    count_parameters,
    measured_throughput,
    plan_study,
    sample,
)
from sweeps.study.study import read_study

Text = Callable[..., str]


def test_plan_by_hand(study_text: Text) -> None:
    """A study without choices, worked out by hand."""
    changes = {"trial.kind": "dense", "trial.model.d_model": 32, "trial.training.lr": 0.01, "search.trials": 6}
    changes |= {"seeds": [0, 1], "resources": {"workers": 2, "cpus_per_worker": 2, "concurrency": 3}}
    study = read_study(study_text(changes), "s")
    found = plan_study(study, assumed_throughput(study, 1e9, 10.0))
    (config, *_) = sample(study)
    size = sum(p.numel() for p in SparseTransformer(config.model).parameters())
    assert count_parameters(config.model) == size
    assert found.parameters == (size, size)
    assert found.trials == 12
    assert found.tokens == 12 * 20_000
    assert found.flops == pytest.approx(12 * 20_000 * flops_per_token(config.model))
    assert found.device_hours == pytest.approx(found.flops / 1e9 / 3600)
    assert found.prune_core_hours == pytest.approx(2 * 12 * 2 * 10 / 3600)  # by node and by edge
    # three trials at a time, each on 2 x 2 cores, which prune four circuits at a time
    assert found.hours == pytest.approx(found.device_hours / 12 + 2 * 24 * 10 / 3600 / 12)


@pytest.mark.parametrize(("micro_batch", "rows"), [(None, 256), (64, 64), (1000, 256)])
def test_a_plan_tells_the_memory_of_a_device(study_text: Text, micro_batch: int | None, rows: int) -> None:
    changes = {
        "trial.kind": "sparse",
        "trial.model.d_model": 2048,
        "trial.model.n_layer": 8,
        "trial.model.context": 256,
    }
    changes |= {"trial.training.batch_size": 512, "trial.training.lr": 0.01, "trial.sparse.training.fraction": 0.1}
    changes |= {"trial.training.micro_batch": micro_batch} if micro_batch else {}
    changes |= {"resources": {"workers": 2, "gpus_per_worker": 1, "parallel": "fsdp"}}
    study = read_study(study_text(changes), "s")
    (config, *_) = sample(study)
    found = plan_study(study, assumed_throughput(study, 1e14, 10.0)).memory
    assert found.micro_batch == rows
    assert found.state_gb == pytest.approx(20 * count_parameters(config.model) / 2 / 1e9)
    assert found.activations_gb == pytest.approx(rows * activation_bytes(config.model, 2) / 1e9)


def test_a_plan_names_the_gpus_that_searches_share(study_text: Text, tmp_path: Path, capsys: Any) -> None:
    shared = {"cpus_per_worker": 4, "gpus_per_pruning_task": 0.25, "concurrency": 2}
    (tmp_path / "s.yaml").write_text(study_text({"resources": shared}))
    assert status_of(["plan", str(tmp_path / "s.yaml")]) == 0
    assert "8 cores and 2 GPUs for pruning" in " ".join(capsys.readouterr().out.split())


def test_plan_like_a_finished_study(study_text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, (flops, seconds) in enumerate(((1e12, 10.0), (3e12, 30.0))):
        row = {"trial": f"t{i}", "status": "ok", "flops": flops, "train_seconds": seconds, "devices": 2}
        write_trial_row(str(tmp_path / "done"), row)
        write_circuit_rows(str(tmp_path / "done"), f"t{i}", [{"trial": f"t{i}", "seconds": 3.0 + i}])
    speed = measured_throughput(str(tmp_path / "done"), read_study(study_text(), "s"))
    assert (speed.flops, speed.prune_seconds) == (pytest.approx(5e10), pytest.approx(3.5))
    fuller = measured_throughput(str(tmp_path / "done"), read_study(study_text({"proofs": "full"}), "s"))
    assert fuller.prune_seconds == PRUNE_SECONDS["full"]
    assert "its circuits have no full proofs: assumed" in fuller.source
    path = tmp_path / "s.yaml"
    path.write_text(study_text())
    assert status_of(["plan", str(path), "--like", str(tmp_path / "done"), "--price", "2", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["throughput"]["flops"] == pytest.approx(5e10)
    assert status_of(["plan", str(path), "--price", "2"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("trials: 12", "FLOPs", "core hours", "wall clock", "cluster", "GB", "cost"))
    assert not (tmp_path / "results").exists(), "planning writes nothing"


def test_full_proofs_are_counted(study_text: Text) -> None:
    hours = {}
    for level in ("basic", "full"):
        study = read_study(study_text({"proofs": level}), "s")
        hours[level] = plan_study(study, assumed_throughput(study, None, None)).prune_core_hours
    assert hours["full"] > 30 * hours["basic"]


def test_the_study_of_the_scale_plan_is_sound_and_costs_what_the_plan_says() -> None:
    root = Path(__file__).parents[3]
    study = read_study((root / "deploy" / "paper.yaml").read_text(), "paper")
    found = plan_study(study, assumed_throughput(study, 4e14, 1200.0))
    text = (root / "docs" / "scale.md").read_text()
    assert f"{found.trials} models" in text
    assert f"{found.device_hours:,.0f} GPU hours" in text
    assert f"{found.prune_core_hours:,.0f} core hours" in text


def test_pruning_on_gpus_is_counted_and_shown_apart(
    study_text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve trials of two tasks by two methods, 36 s each on half a GPU and two cores."""
    resources = {"gpus_per_worker": 0.25, "gpus_per_pruning_task": 0.5, "cpus_per_pruning_task": 2}
    path = tmp_path / "s.yaml"
    path.write_text(study_text({"resources": resources}))
    found = plan_study(
        read_study(path.read_text(), "s"), assumed_throughput(read_study(path.read_text(), "s"), 1e9, 36.0)
    )
    assert found.prune_core_hours == pytest.approx(12 * 2 * 2 * 36 * 2 / 3600)
    assert found.prune_gpu_hours == pytest.approx(12 * 2 * 2 * 36 * 0.5 / 3600)
    assert found.device_hours == pytest.approx(found.flops / 1e9 / 3600)
    assert status_of(["plan", str(path), "--flops", "1e9", "--prune-seconds", "36", "--price", "10"]) == 0
    said = capsys.readouterr().out
    assert f"training {found.device_hours:,.2f} GPU hours; pruning 0.96 core hours and 0.24 GPU hours" in said
    total = 10 * (found.device_hours + 0.24)
    assert f"{total:,.2f} at 10 per GPU hour: {10 * found.device_hours:,.2f} of training, 2.40 of pruning" in said
    assert "0.5 GPUs for training" in said, "two trials of a quarter each"
