"""`sweeps circuit page`, `sweeps circuit compare`, `sweeps report`, and the report that a run ends with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from rich.console import Console

from circuit.graph.record import Circuit
from circuit.tasks import task_data
from pages.conftest import Open
from pages.stories import record
from sparse_model.data.shards import prepare
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import save_pretrained
from sweeps.cli import status_of
from sweeps.commands.run import _report
from sweeps.frontier.rows import write_circuit_rows, write_curve, write_trial_row
from sweeps.study.study import Study, load_study
from sweeps.trial.task_circuits import circuit_row, training_windows

KEY = "t00000-1a2b3c4d"


class Folder(NamedTuple):
    study: Study
    model: str
    circuit: str
    circuits: list[Circuit]


@pytest.fixture
def folder(study_text: Callable[..., str], tmp_path: Path) -> Folder:
    """A study's folder as a run leaves it, with one trial of random weights and circuits of random nodes."""
    changes = {"tasks": ["else_elif"], "pruning": {"pairs": 8}, "storage": str(tmp_path / "results")}
    (tmp_path / "tiny.yaml").write_text(study_text(changes))
    study = load_study(str(tmp_path / "tiny.yaml"))
    root, model_uri = Path(study.root), f"{study.root}/models/{KEY}"
    data = prepare(study.corpus, study.tokenizer, study.storage)
    torch.manual_seed(0)
    options = {"vocab_size": 400, "context": 96, "n_layer": 1, "d_model": 32, "d_head": 16}
    model = SparseTransformer(ModelConfig.model_validate(options))
    save_pretrained(model, data.tokenizer, model_uri)
    task = task_data("else_elif", data.tokenizer, pairs=8, seed=0)
    text = training_windows(model, data)[:8]
    circuits = []
    for name, channels in (("else_elif", (1, 2)), ("else_elif-0.5", (2, 3))):
        kinds = ("attn.in", "attn.q", "attn.k", "attn.v", "attn.out")
        nodes = {f"layers.0.{kind}": channels for kind in kinds} | {"final.in": channels}
        circuits.append(record(model, task, text, nodes).model_copy(update={"heldout_loss": 0.1}))
        circuits[-1].save(f"{study.root}/circuits/{KEY}/{name}.json")
    (root / "study.yaml").write_text(study.to_yaml())
    good = {"study": "tiny", "trial": KEY, **circuit_row(circuits[0]), "heldout_loss": 0.1}
    write_circuit_rows(study.root, KEY, [good])
    write_curve(study.root, "tiny", KEY, [{"step": 1, "tokens": 9, "train_loss": 3.0}, {"step": 2, "val_loss": 2.0}])
    row = {"study": "tiny", "trial": KEY, "kind": "sparse", "status": "ok", "eligible": True, "val_loss": 2.0}
    more = {"circuit_edges": 9.0, "data": data.manifest.key, "target_loss": 0.15, "tasks_solved": 1, "tasks_tried": 1}
    write_trial_row(study.root, row | more)
    return Folder(study, model_uri, f"{study.root}/circuits/{KEY}/else_elif.json", circuits)


def test_a_page_of_a_trials_circuit(folder: Folder, opened: Open, tmp_path: Path, capsys: Any) -> None:
    assert status_of(["circuit", "page", folder.circuit, "--model", folder.model]) == 0
    path = Path(folder.circuit.replace(".json", ".html"))
    assert f"page: {path}" in capsys.readouterr().out
    page = opened(path)
    head = page.locator("header").inner_text()
    for word in (KEY, "tiny", folder.circuits[0].model, "idioms", "circuit-sweeps"):
        assert word in head
    assert page.locator(".node").count() == 12
    notes = {"format": "circuit-sweeps/notes", "version": 1, "task": "else_elif", "model": folder.circuits[0].model}
    (tmp_path / "notes.json").write_text(json.dumps(notes | {"names": {"final.in.1": "verdict"}}))
    common = ["circuit", "page", folder.circuit, "--model", folder.model, "--out", str(tmp_path / "named.html")]
    assert status_of([*common, "--notes", str(tmp_path / "notes.json")]) == 0
    assert "verdict" in opened(tmp_path / "named.html").locator("#notes").inner_text()


def test_what_a_page_cannot_be_made_of_is_one_line(folder: Folder, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "notes.json").write_text("{}")
    other = folder.circuits[0].model_copy(update={"model": "0" * 16})
    other.save(str(tmp_path / "other.json"))
    for arguments, words in (
        ([str(tmp_path / "other.json")], "0000000000000000"),
        ([folder.circuit, "--notes", str(tmp_path / "notes.json")], "notes.json: not the notes of a page"),
        ([str(tmp_path / "none.json")], "none.json"),
    ):
        assert status_of(["circuit", "page", *arguments, "--model", folder.model]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert words in said[-1]
    assert not list(tmp_path.glob("*.html"))


def test_circuits_are_compared_as_table_json_and_page(
    folder: Folder, opened: Open, tmp_path: Path, capsys: Any
) -> None:
    files = [folder.circuit, folder.circuit.replace(".json", "-0.5.json")]
    assert status_of(["circuit", "compare", *files, "--out", str(tmp_path / "both.html")]) == 0
    assert "Jaccard of nodes" in capsys.readouterr().out
    assert opened(tmp_path / "both.html").locator(".still svg").count() == 2
    assert status_of(["circuit", "compare", *files, "--model", folder.model, "--format", "json"]) == 0
    (pair,) = json.loads(capsys.readouterr().out.split("\n", 0)[0])["pairs"]
    assert pair["nodes"]["value"] == pytest.approx(1 / 3, rel=1e-4)
    for wrong in ([files[0]], [files[0], files[0]], [*files, "--model", "a", "--model", "b", "--model", "c"]):
        assert status_of(["circuit", "compare", *wrong]) == 2


def test_a_report_draws_the_circuits_of_the_front_that_count(folder: Folder, opened: Open, capsys: Any) -> None:
    root = Path(folder.study.root)
    failing = folder.circuits[0].model_copy(update={"heldout_loss": 2.0})
    failing.save(folder.circuit.replace(".json", "-0.3.json"))
    assert status_of(["report", str(root)]) == 0
    assert f"report: {root}/report/index.html (2 pages of circuits)" in capsys.readouterr().out
    page = opened(root / "report" / "index.html")
    href = page.locator("#tasks a").get_attribute("href")
    assert href == f"circuits/{KEY}/else_elif.html"
    page.locator("#tasks a").click()
    page.wait_for_selector("#picture")
    page.go_back()
    page.wait_for_selector("#tasks a")
    drawn = root / "report" / href
    drawn.write_text("kept")
    assert status_of(["report", str(root), "--circuits", "all"]) == 0
    assert drawn.read_text() == "kept"
    assert "(3 pages of circuits)" in capsys.readouterr().out


def test_a_run_ends_with_a_report_unless_it_is_not_wanted(folder: Folder, monkeypatch: Any, capsys: Any) -> None:
    root, console = Path(folder.study.root), Console(width=200)
    _report(folder.study.model_copy(update={"report": "none"}), console)
    assert not (root / "report").exists()

    def broken(*arguments: Any) -> None:
        raise RuntimeError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("sweeps.commands.run.write_report", broken)
        _report(folder.study, console)  # says so, and raises nothing
    said = capsys.readouterr().out
    assert "no report: RuntimeError: no room" in said
    assert f"sweeps report {root}" in said
    _report(folder.study, console)
    assert (root / "report" / "index.html").exists()
    assert yaml.safe_load(folder.study.to_yaml())["report"] == "front"


def test_a_page_that_cannot_be_drawn_is_said_and_the_others_are_there(folder: Folder, capsys: Any) -> None:
    Path(folder.circuit).write_text("{")
    assert status_of(["report", folder.study.root]) == 0
    said = capsys.readouterr().out
    assert f"no page of {KEY}: else_elif" in said
    assert "(1 pages of circuits)" in said
