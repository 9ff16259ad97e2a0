"""Commands and pruning tasks on a GPU that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pretend_gpu import pretend_gpu

from circuit.graph.record import Circuit
from sweeps.cli import status_of
from sweeps.commands.opening import prepared
from sweeps.commands.options import device_named
from sweeps.show.text import terminal
from sweeps.study.study import load_study
from sweeps.trial.task_circuits import prune_task, settings, summarise_published


def test_a_model_is_trained_and_pruned_where_it_is_asked_for(
    study_text: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(seen))
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(seen))
    study, storage, folder = tmp_path / "tiny.yaml", str(tmp_path / "storage"), str(tmp_path / "model")
    small = {"trial.training.tokens": 40_000, "pruning": {"pairs": 4, "steps": 5}, "target_losses": [0.6]}
    study.write_text(study_text(small))
    common = ["--study", str(study), "--storage", storage]
    size = ["--set", "kind=dense", "--set", "model.d_model=32", "--set", "training.lr=0.1"]
    assert status_of(["train", folder, *common, *size, "--device", "cuda"]) == 2
    assert "--device 'cuda'; allowed: cpu (torch sees no GPU)" in capsys.readouterr().err

    assert device_named(None) == torch.device("cpu")

    with pretend_gpu() as gpu:
        seen.append(gpu)
        assert device_named(None).type == "cuda"
        assert status_of(["train", folder, *common, *size]) == 0
        files = {device: str(tmp_path / f"{device}.json") for device in ("cpu", "cuda:0")}
        for device, file in files.items():
            assert status_of(["prune", folder, "else_elif", *common, "--out", file, "--device", device]) == 0
    ours, theirs = (Circuit.load(file) for file in files.values())
    assert theirs == ours.model_copy(update={"seconds": theirs.seconds})

    asked = load_study(str(study), storage)
    data = prepared(asked, terminal()).uri
    config = settings(asked)
    rows = []
    with pretend_gpu():
        for device in ("cpu", "cuda"):
            known = summarise_published(folder, data, 10**9, 1, device)
            assert not any(mean.is_cuda for mean in known.means.values())
            rows.append(
                prune_task(folder, "else_elif", config, (0.6,), str(tmp_path / f"circuits-{device}"), 1, known, device)
            )
    for one, other in zip(*rows, strict=True):
        assert other == one | {"seconds": other["seconds"]}
