"""Every benchmark runs and prints what it promises; its times are nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
PARTS = {"projection_ms", "abstopk_ms", "attention_ms", "adamw_ms"}
STEP_FIGURES = {"plain_dense_ms", "dense_ms", "sparse_ms", "sparse_over_plain_dense"} | PARTS


def run(script: str, out: Path, *options: str) -> dict[str, object]:
    command = [sys.executable, FOLDER / script, "--rounds", "1", "--json", out, *options]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=120)
    figures: dict[str, object] = json.loads(out.read_text())
    return figures


def test_train_step(tmp_path: Path) -> None:
    figures = run("train_step.py", tmp_path / "figures.json", "--shape", "tiny")
    assert figures.keys() == STEP_FIGURES
    assert figures["sparse_over_plain_dense"] == pytest.approx(figures["sparse_ms"] / figures["plain_dense_ms"])


def test_kernels(tmp_path: Path) -> None:
    figures = run("kernels.py", tmp_path / "figures.json")
    assert figures.keys() == {"abstopk", "projection_4M", "attention", "loss"}
