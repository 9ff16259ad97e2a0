"""The command line: exit statuses, one line per mistake, never a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from circuit.tasks import TASKS
from sparse_model.cores import cpu_count
from sparse_model.errors import InputError
from sparse_model.storage.store_errors import StorageFailed, StorageUnavailable, begun
from sweeps import cli
from sweeps.cli import status_of
from sweeps.commands.one import chosen
from sweeps.engine.session import HOLDER, capacity, own_resources
from sweeps.frontier.rows import write_circuit_rows, write_trial_row
from sweeps.study.study import ResourceConfig, read_study, shipped_studies

Text = Callable[..., str]
WORK = ("run", "train", "prune", "import", "tasks", "corpus", "tokenizer", "doctor")
COMMANDS = (
    *WORK,
    "plan",
    "submit",
    "status",
    "frontier",
    "search",
    "curves",
    "baselines",
    "circuit",
)


CIRCUIT = {"study": "s", "task": "x", "target_loss": 0.15, "method": "node", "status": "ok", "edges": 10}


@pytest.fixture
def study_folder(tmp_path: Path) -> Path:
    """A study's folder with two trials."""
    for i, kind in enumerate(("sparse", "dense")):
        row = {"study": "s", "trial": f"t{i}", "kind": kind, "status": "ok", "eligible": True, "val_loss": 2.0 + i}
        row |= {"circuit_edges": 10.0, "tasks_solved": 1, "tasks_tried": 2, "d_model": 32, "fraction": 0.1}
        write_circuit_rows(str(tmp_path), f"t{i}", [CIRCUIT | {"trial": f"t{i}"}])
        write_trial_row(str(tmp_path), row | {"target_loss": 0.15})
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([command, "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_shipped_studies_are_named_where_users_look(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["run", "--help"]) == 0
    said, readme = capsys.readouterr().out, (Path(__file__).parents[3] / "README.md").read_text()
    for name in shipped_studies():
        assert name in "".join(said.split())  # names are broken at their hyphens
        assert f"`{name}`" in readme


@pytest.mark.parametrize("command", ["run", "doctor", "corpus"])
def test_ten_mistakes_exit_2(
    command: str,
    study_text: Text,
    ten_mistakes: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(study_text(ten_mistakes))
    assert status_of([command, str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert all(line.startswith(f"sweeps: {path}: ") for line in lines)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"], "something was written"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "no_such_study"], f"shipped studies: {', '.join(shipped_studies())}"),
        (["frontier", "/nowhere"], "no frontier here"),
        (["frontier", "nosuch://x"], "nosuch"),
        (["frontier", "{folder}", "--sql", "SELECT 1", "--where", "1=1"], "one of them"),
        (["frontier", "{folder}", "--where", "nothing = 1"], "nothing"),
        (["frontier", "{folder}", "--where", " "], "where: ''; allowed: an SQL condition"),
        (["frontier", "{folder}", "--sql", ""], "one query is expected"),
        (["frontier", "{folder}", "--compare", "kind = 'sparse'", ""], "where: ''; allowed: an SQL condition"),
        (["frontier", "{folder}", "--format", "xml"], "xml"),
        (["frontier", "{folder}", "--plot", "{folder}/p.exe"], ".png"),
        (["frontier", "{folder}", "{folder}"], "twice"),
        (["frontier", "{folder}", "--sql", "COPY trials TO '/tmp/x'"], "one query"),
        (["frontier", "{folder}", "--pareto", "--over-time"], "--over-time and --pareto: one of them"),
        (["frontier", "{folder}", "--target", "0.7"], "there are circuits at 0.15"),
        (["frontier", "{folder}", "--compare", "kind = 'sparse'", "kind = 'odd'"], "no trial of this group"),
        (["prune", "/nowhere", "else_elif"], "/nowhere"),
        (["prune", "/nowhere", "nonsense"], "nonsense"),
        (["import", "{folder}", "--out", "{folder}/m"], "beeg_config.json: it does not exist"),
        (["import", "{folder}"], "out"),
        (["train", "{folder}/m", "--set", "kind=dense"], "model.d_model"),
        (["train", "{folder}/m", "--set", "nonsense"], "'nonsense'"),
        (["corpus", "smoke", "--workers", "0"], "--workers"),
        (["corpus", "smoke", "--workers", "2", "--address", "auto"], "--workers and --address: one of them"),
        (["plan", "smoke", "--storage", "s3://b/x?endpoint_override=http%3A%2F%2Fu%3Aword%40h"], "//***@h"),
        (["plan", "s3://user:word@b/x.yaml"], "study s3://***@b/x.yaml"),
        (["dance"], "No such command 'dance'; `sweeps --help` lists the commands"),
        ([], "Missing command; `sweeps --help` lists the commands"),
        (["circuit"], "Missing command; `sweeps circuit --help` lists the commands"),
        (["run"], "Missing argument 'study'; `sweeps run --help` says what it takes"),
        (["run", "smoke", "--trials", "3"], "No such option: --trials; `sweeps run --help` says what it takes"),
        (["plan", "smoke", "--price", "cheap"], "`sweeps plan --help` says what it takes"),
        (["status", "{folder}/.."], "no study here (no study.yaml); studies below it: none"),
        (["clean", "{folder}/frontier"], "no study here (no study.yaml); studies below it: none"),
        (["frontier", "{folder}", "--where", "kind=sparse"], "a text stands in single quotes: 'sparse'"),
        (["frontier", "{folder}", "--compare", "sparse", "dense"], "a text stands in single quotes: 'sparse'"),
        (["train", "{folder}/m"], "--set kind=… is needed; allowed: sparse, dense"),
        (["prune", "{folder}/frontier", "else_elif"], "no model here (no config.json); models below it: none"),
        (["clean", "{folder}", "--only", "models"], "allowed: orphans, checkpoints, tokens"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str], words: str, study_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of([argument.format(folder=study_folder) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("sweeps:")]) == 1


def test_storage_that_cannot_be_written(study_text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "s.yaml"
    path.write_text(study_text())
    for command in ("run", "doctor"):
        assert status_of([command, str(path), "--storage", str(tmp_path / "file")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "storage: cannot write" in line


def test_a_changed_study_is_refused(study_text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = read_study(study_text(), "s")
    folder = Path(stored.root)
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(stored.to_yaml())
    path = tmp_path / "s.yaml"
    for change, words in (
        ({"trial.training.tokens": 30_000}, "trial.training.tokens is 30000"),
        ({"search.seed": 4}, "search.seed is 4"),
        ({"search.trials": 3}, "can be raised, not lowered"),
    ):
        path.write_text(study_text(change))
        assert status_of(["run", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_failures_and_interrupts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for error, status, words in (
        (RuntimeError("broken\nin two lines"), 1, "failed: RuntimeError: broken in two lines"),
        (KeyboardInterrupt(), 130, "finished is kept, and the same command goes on"),
        (InputError("bad"), 2, "bad"),
        (StorageFailed("full"), 1, "failed: full"),
        (StorageUnavailable("down"), 1, "failed: down"),
    ):

        def raising(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(cli, "sweeps_app", raising)
        assert status_of([]) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_an_interrupt_while_libraries_are_imported_is_one_line() -> None:
    program = """
import sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from sweeps.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "sweeps: interrupted\n")


def test_frontier_formats(study_folder: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    def answer(*arguments: str) -> bytes:
        assert status_of(["frontier", str(study_folder), *arguments]) == 0
        return capsysbinary.readouterr().out

    assert [row["trial"] for row in json.loads(answer("--format", "json"))] == ["t0", "t1"]
    assert pd.read_csv(io.BytesIO(answer("--format", "csv")))["val_loss"].tolist() == [2.0, 3.0]
    chosen_rows = pd.read_parquet(io.BytesIO(answer("--format", "parquet", "--where", "kind = 'dense'")))
    assert chosen_rows["trial"].tolist() == ["t1"]
    table = answer().decode()
    assert "* t0" in table
    assert "* t1" not in table, "only the better trial is on the front"
    counted = answer(
        "--sql", "SELECT count(*) AS n FROM circuits", "--format", "json", "--plot", f"{study_folder}/p.svg"
    )
    assert json.loads(counted) == [{"n": 2}]
    assert (study_folder / "p.svg").exists()


def test_values_are_shown_as_they_are(study_folder: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """No markup, no commands to the terminal, no column in place of another, nothing JSON does not know."""

    def answer(form: str, query: str) -> str:
        assert status_of(["frontier", str(study_folder), "--sql", query, "--format", form]) == 0
        return capsysbinary.readouterr().out.decode()

    said = answer("table", "SELECT '[a-z]+' AS \"[red]\", '[/red]' AS b, chr(27) || '[2J' AS c, 1 AS d, 2 AS d")
    for text in ("[a-z]+", "[red]", "[/red]", "\\x1b[2J", "d_1", " 2 "):
        assert text in said
    assert "\x1b[2J" not in said
    assert json.loads(answer("json", "SELECT 'nan'::float AS a, [1.0, 'inf'::float] AS b")) == [
        {"a": None, "b": [1.0, None]}
    ]
    for form in ("csv", "parquet"):
        assert status_of(["frontier", str(study_folder), "--format", form, "--sql", UNION]) == 2
        assert b"cast such columns in the query" in capsysbinary.readouterr().err
    assert status_of(["frontier", str(study_folder), "--format", "csv", "--sql", "SELECT [1] AS a"]) == 2
    assert b"--format csv: Unsupported Type" in capsysbinary.readouterr().err


UNION = "SELECT union_value(n := 1) AS a"


def test_frontier_questions(study_folder: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    def answer(*arguments: str) -> bytes:
        assert status_of(["frontier", str(study_folder), *arguments]) == 0
        return capsysbinary.readouterr().out

    (best,) = json.loads(answer("--pareto", "--format", "json"))
    assert (best["trial"], best["edges"], best["compared_tasks"]) == ("t0", pytest.approx(10), 1)
    assert "1 tasks (of 1) that all 2 compared trials solve" in " ".join(answer("--tasks", "x").decode().split())
    history = json.loads(answer("--over-time", "--format", "json"))
    assert [row["trials"] for row in history] == [1, 2]
    write_trial_row(str(study_folder), {"study": "s", "trial": "t2", "kind": "dense", "status": "ok", "eligible": True,
                                        "val_loss": 2.0, "target_loss": 0.15})  # fmt: skip
    write_circuit_rows(str(study_folder), "t2", [CIRCUIT | {"trial": "t2", "edges": 40}])
    groups = ("--compare", "kind = 'sparse'", "kind = 'dense' and val_loss < 2.5")
    (_, whole) = json.loads(answer(*groups, "--format", "json"))
    assert whole["ratio"] == pytest.approx(4)
    assert "4.00" in answer(*groups).decode()
    before = answer("--format", "csv")
    assert status_of(["compact", str(study_folder)]) == 0
    capsysbinary.readouterr()
    assert answer("--format", "csv") == before
    assert len(list((study_folder / "frontier" / "trials").iterdir())) == 1


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["tasks"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in TASKS)
    assert said.count("⟶") == 2 * len(TASKS)


def test_a_terminal_without_our_characters_is_told_their_numbers() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-m", "sweeps", "tasks"], env=environment, capture_output=True, check=True)
    assert b"\\u27f6" in done.stdout
    assert not done.stderr


def test_brackets_and_colons_in_a_name_are_no_markup(
    study_text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = tmp_path / "s.yaml", tmp_path / "a[bold]b :warning: 日本語"
    path.write_text(study_text())
    assert status_of(["doctor", str(path), "--storage", str(store)]) == 0
    assert f"storage {store}: writable" in capsys.readouterr().out


def test_doctor(study_text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(study_text())
    assert status_of(["doctor", str(path)]) == 0
    said = capsys.readouterr().out
    assert all(words in said for words in ("torch", "ray", "sound", "writable", "at a time fit"))
    path.write_text(study_text({"resources.cpus_per_worker": 1000}))
    assert status_of(["doctor", str(path)]) == 2
    assert "1000 CPU cores" in capsys.readouterr().err


def test_doctor_tries_the_kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Here there is none, so what it tries fails, and so does a machine without a C compiler before that."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda i: "a GPU")
    assert status_of(["doctor", "smoke"]) == 2
    assert "GPU 0: a kernel fails" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert status_of(["doctor", "smoke"]) == 2
    assert "no C compiler" in capsys.readouterr().err


def test_capacity() -> None:
    two = ResourceConfig.model_validate({"workers": 2, "concurrency": 3})
    assert capacity(two, {"CPU": 8, HOLDER: 9}, can_grow=False).concurrency == 3
    assert capacity(two, {"CPU": 5, HOLDER: 9}, can_grow=False).concurrency == 2
    assert capacity(two, {"CPU": 1}, can_grow=True).concurrency == 3
    assert capacity(two, {"CPU": 8}, can_grow=False).holder == {"CPU": 0.01}
    with pytest.raises(InputError, match="2 CPU cores"):
        capacity(two, {"CPU": 1}, can_grow=False)
    with pytest.raises(InputError, match="1 GPUs"):
        capacity(ResourceConfig.model_validate({"gpus_per_worker": 1}), {"CPU": 4}, can_grow=False)
    with pytest.raises(InputError, match=r"0\.5 GPUs"):
        capacity(ResourceConfig.model_validate({"gpus_per_pruning_task": 0.5}), {"CPU": 4}, can_grow=False)


def test_a_cluster_that_must_grow_is_said_to_lack_what_a_trial_needs() -> None:
    apart = ResourceConfig.model_validate(
        {"workers": 2, "gpus_per_worker": 1, "pruning_resource": "pruner", "cpus_per_pruning_task": 2}
    )
    cpus = apart.cpus
    there = {"CPU": cpus, "GPU": 2.0, "pruner": 2.0}
    assert capacity(apart, there, can_grow=True).lacking == ""
    assert capacity(apart, there | {"GPU": 1.0}, can_grow=True).lacking == "2 GPU (there: 1)"
    assert capacity(apart, {"CPU": cpus}, can_grow=True).lacking == "2 GPU (there: 0), 2 pruner (there: 0)"


def test_this_machine_offers_the_resource_that_pruning_asks_for() -> None:
    assert own_resources(ResourceConfig.model_validate({"pruning_resource": "pruner"})) == {"pruner": cpu_count()}
    assert own_resources(ResourceConfig.model_validate({})) == {}


def test_a_study_to_learn_from_that_is_not_there_is_told_before_data_are_prepared(
    study_text: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(study_text({"search.warm_start": [str(tmp_path / "nowhere")]}))
    assert status_of(["run", str(path), "--storage", str(tmp_path / "results")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("sweeps: search.warm_start[0]: ")
    assert not (tmp_path / "results" / "data").exists()


def test_one_trial_of_a_space(study_text: Text) -> None:
    space = read_study(study_text(), "s").space
    config = chosen(space, ["kind=dense", "model.d_model=64", "training.lr=1e-2"], seed=3)
    assert (config.kind, config.model.d_model, config.training.lr, config.training.seed) == ("dense", 64, 0.01, 3)
    for assignments, words in (
        (["kind=dense", "model.d_model=64"], "--set training.lr=… is needed"),
        (["kind=dense", "model.d_model=48", "training.lr=0.01"], "one of 32, 64"),
        (["model.d_model=64"], "kind"),
        (["kind=dense", "model.d_model"], "model.d_model"),
    ):
        with pytest.raises(InputError, match=words):
            chosen(space, assignments, seed=0)


def test_what_no_single_machine_can_hold_is_said() -> None:
    """Enough in all, on two machines: Ray would wait for ever."""
    wide = ResourceConfig.model_validate({"cpus_per_worker": 8, "pruning_resource": "pruner"})
    nodes = [{"CPU": 6.0, "pruner": 6.0}, {"CPU": 4.0}]
    offered = {"CPU": 10.0, "pruner": 6.0}
    said = capacity(wide, offered, can_grow=True, nodes=nodes).lacking
    assert said == "8 CPU on one machine for a training worker (the most on one: 6 CPU)"
    assert capacity(wide, offered, can_grow=True, nodes=[*nodes, {"CPU": 8.0}]).lacking == ""
    apart = ResourceConfig.model_validate({"pruning_resource": "pruner"})
    assert (
        "1 CPU and 1 pruner on one machine"
        in capacity(apart, {"CPU": 1.0, "pruner": 1.0}, can_grow=True, nodes=[{"CPU": 1.0}, {"pruner": 1.0}]).lacking
    )


def test_a_store_that_refuses_in_the_middle_is_a_fault_and_bad_input_is_not() -> None:
    with pytest.raises(StorageFailed, match="Access Denied"), begun():
        raise InputError("storage: cannot write s3://b/x: Access Denied")
    with pytest.raises(InputError) as caught, begun():
        raise InputError("search.trials: -1")
    assert not isinstance(caught.value, StorageFailed)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "127.0.0.1:x"])
def test_a_cluster_that_is_not_there_is_told_before_data_are_prepared(
    address: str, study_text: Text, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(study_text())
    assert status_of(["run", str(path), "--address", address]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"address {address}: no Ray there" in line
    assert [p.name for p in tmp_path.iterdir()] == ["s.yaml"]
