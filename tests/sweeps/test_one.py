"""`sweeps train` and `sweeps prune`, from text to circuit, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from circuit.evaluation import circuit_score
from circuit.graph import Circuit
from circuit.tasks import build_task, task_named
from sparse_model.pretrained import from_pretrained
from sweeps.cli import status_of

TASK, TOO_HARD = "else_elif", "var_swap"
SIZE = ["--set", "model.d_model=32", "--set", "training.lr=0.1"]


@pytest.fixture
def study(study_text: Callable[..., str], tmp_path: Path) -> str:
    """A study file whose models know little more than which token follows which: enough for one task."""
    path = tmp_path / "tiny.yaml"
    training = {"trial.training.tokens": 40_000, "trial.training.lr": 0.1, "pruning": {"pairs": 8}}
    path.write_text(study_text(training | {"target_losses": [0.6]}))
    return str(path)


def test_a_model_is_trained_and_its_circuit_found(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_folder, circuit_file = str(tmp_path / "model"), tmp_path / "circuit.json"
    common = ["--study", study, "--storage", str(tmp_path / "storage")]
    assert status_of(["train", model_folder, *common, "--set", "kind=dense", *SIZE]) == 0
    assert "validation loss" in capsys.readouterr().out
    assert status_of(["prune", model_folder, TASK, *common, "--out", str(circuit_file)]) == 0
    assert "edges" in capsys.readouterr().out
    model, tokenizer = from_pretrained(model_folder)
    circuit = Circuit.load(str(circuit_file))
    data = build_task(task_named(TASK), tokenizer, n_train=8, n_heldout=8, seed=0)
    assert circuit_score(model, circuit, data.train).loss == pytest.approx(circuit.loss)


def test_a_task_the_model_cannot_do_exits_1(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--study", study, "--storage", str(tmp_path / "storage")]
    folder = str(tmp_path / "model")
    assert status_of(["train", folder, *common, "--set", "kind=dense", *SIZE]) == 0
    assert status_of(["prune", folder, TOO_HARD, *common]) == 1
    assert "unsolved" in capsys.readouterr().out
