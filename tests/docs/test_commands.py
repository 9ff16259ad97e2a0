"""Every command and every piece of code that README and docs show is run, or checked by the program it is for."""

from __future__ import annotations

import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from circuit import Circuit, task_data
from circuit.pages import Notes
from circuit.tasks import local as local_tasks
from circuit.tasks.context import PROMPT_PARTS, PromptPart
from docs.conftest import DENSE, SPARSE, TASK, write_rows
from sparse_model import InputError, from_pretrained
from sweeps.cli import status_of, sweeps_app
from sweeps.study import read_study

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODELS = "results/quickstart/models"
PLACES = {
    "docs/data/": f"{ROOT}/docs/data/",
    "OTHER_TRIAL": DENSE, "MODEL_A": f"{MODELS}/{SPARSE}", "MODEL_B": f"{MODELS}/{DENSE}", "TRIAL": SPARSE,
    "MODEL": f"{MODELS}/{SPARSE}", "my_study.yaml": "tiny.yaml", "<trial>": SPARSE, "<sparse trial>": SPARSE,
    "<dense trial>": DENSE, "s3://BUCKET/PATH/STUDY": "results/quickstart", "s3://bucket/a": "results/quickstart",
    "s3://bucket/b": "results/other", "STUDY": "tiny.yaml", "bracket_counting": TASK, "bracket_brace": TASK,
    "layers.0.attn.k.72": "final.in.0", " final.in.5=1.5": "", "if_equals,for_or_if.jsonl": "my_task.jsonl",
    "for_or_if.jsonl": "my_task.jsonl",
}  # fmt: skip
"""What the docs' names stand for here: the small models do one task, with one node."""
SMALL = ["--study", "tiny.yaml"]
SOONER = {
    "prune": SMALL, "curves": SMALL, "baselines": SMALL, "circuit ablate": SMALL, "circuit contexts": SMALL,
    "circuit binarise": SMALL, "tasks --audit": SMALL, "circuit page": SMALL, "circuit compare": SMALL,
}  # fmt: skip
"""Options added to commands that would prepare the quickstart's text, or search all its tasks."""


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def without_environment(command: str) -> str:
    """A command without the variables that stand before it."""
    return re.sub(r"^([A-Z_]+=\S+ )+", "", command)


def shown() -> Iterator[tuple[str, str]]:
    """(page, command) of every line in a block of commands."""
    for page in PAGES:
        for block in fenced(page, "sh"):
            for line in block.replace("\\\n", "").splitlines():
                command = without_environment(re.sub(r"\s+#\s.*", "", line).strip())
                if command:
                    yield page.name, command


def spans() -> Iterator[tuple[str, str]]:
    """(page, text) of everything within a sentence that is set as code."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
        for found in re.findall(r"`([^`]*)`", text):
            yield page.name, without_environment(" ".join(found.split()))


SPANS = sorted({text for _, text in spans()})
SHOWN = list(dict.fromkeys(command for _, command in shown()))
OURS = [command for command in SHOWN if command.startswith("sweeps ")]
RUN = [command for command in OURS if not re.match(r"sweeps (run|submit|import) |sweeps prune models/", command)]
SCRIPTS = [command for command in SHOWN + SPANS if re.match(r"python \S+\.py", command)]
MAKES = [command for command in dict.fromkeys(SHOWN + SPANS) if re.match(r"make( |$)", command)]
RAYS = [command for command in SHOWN if command.startswith("ray ")]
ELSEWHERE = {
    "sweeps run quickstart": "runs for ten minutes; below, its file is checked, and smoke is run from a wheel",
    "sweeps report results/quickstart": "",
    "sweeps run mine.yaml": "test_the_study_of_readme",
    "sweeps import csp_yolo2 --tokenizer tinypython --out models/csp_yolo2": "tests/sparse_model/saved/test_openai.py",
    "sweeps prune models/csp_yolo2 bracket_counting": "tests/sparse_model/saved/test_openai.py",
    "source .venv/bin/activate": "part of every virtual environment",
    "export RAY_AUTH_MODE=token": "of the shell",
    ".venv/bin/pre-commit install": "changes the repository",
    "python -m build": "tests/docs/test_wheel.py",
    "pip install -c requirements.lock dist/circuit_sweeps-0.2.0-py3-none-any.whl": "tests/docs/test_wheel.py",
}
"""Commands that are not run here, and why, or where."""


def test_no_command_is_left_out() -> None:
    looked_at = {*RUN, *SCRIPTS, *MAKES, *RAYS, *ELSEWHERE}
    submits = {command for command in OURS if command.startswith("sweeps submit")}
    assert set(SHOWN) - looked_at - submits == set()
    assert set(ELSEWHERE) - set(SHOWN) == set(), "no longer shown"
    for page in PAGES:
        bare = [block for block in fenced(page, "") if re.match(r"(sweeps|make|python|pip|ray) ", block)]
        assert not bare, f"{page.name}: mark commands as ```sh"


@pytest.fixture
def here(after_the_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The newcomer's folder, to be changed at will; tokens stay from test to test."""
    place = tmp_path / "home"
    shutil.copytree(after_the_demo, place, symlinks=True, ignore=shutil.ignore_patterns("data"))
    (after_the_demo / "results" / "data").mkdir(exist_ok=True)
    (place / "results" / "data").symlink_to(after_the_demo / "results" / "data")
    other = place / "results" / "other"
    write_rows(str(other), SPARSE, "sparse", 2.5)
    (other / "study.yaml").write_text(
        (place / "results/quickstart/study.yaml").read_text().replace("quickstart", "other")
    )
    searched = {"d_model: 16": "d_model: {choice: [64, 128]}", "fraction: 0.2": "fraction: {loguniform: [0.06, 0.12]}"}
    copied = (place / "tiny.yaml").read_text().replace("lr: 0.1}", "lr: 0.1, anneal: {choice: [0.3, 0.5]}}")
    for fixed, drawn in searched.items():
        copied = copied.replace(fixed, drawn)
    (place / "copy.yaml").write_text(copied)
    (place / "mine.yaml").write_text(fenced(ROOT / "README.md", "yaml")[0])
    monkeypatch.chdir(place)
    return place


def told_here(command: str, home: Path) -> list[str]:
    """The arguments of a command of ours, with this folder's names for the docs'."""
    for name, place in PLACES.items():
        command = command.replace(name, place)
    arguments = [word for part in shlex.split(command)[1:] for word in expanded(part, home)]
    for start, options in SOONER.items():
        if arguments[: len(start.split())] == start.split() and "--study" not in arguments:
            arguments += options
            if start in ("curves", "baselines") and "--tasks" not in arguments:
                arguments += ["--tasks", TASK]
    return arguments


def expanded(word: str, home: Path) -> list[str]:
    """As a shell would."""
    found = sorted(str(path.relative_to(home)) for path in home.glob(word)) if "*" in word else []
    return found or [word]


@pytest.mark.parametrize("command", RUN)
def test_our_commands_run(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = Notes.none_on(Circuit.load("circuit.json"))
    Path(f"{TASK}-notes.json").write_text(notes.model_dump_json())
    status = status_of(told_here(command, here))
    said = capsys.readouterr()
    nothing = "status: un" in said.out or "nothing to draw" in said.err  # such small models do too little
    assert status == 0 or nothing, said.err


@pytest.mark.parametrize("command", [command for command in OURS if command.startswith("sweeps submit")])
def test_submitting_asks_for_a_cluster(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it does with one: tests/cluster/test_submit.py."""
    assert status_of(told_here(command, here)) == 2
    assert "http://127.0.0.1:8265" in capsys.readouterr().err


def test_the_study_of_readme(here: Path) -> None:
    study = read_study((here / "mine.yaml").read_text(), "README.md")
    assert (study.name, study.search.trials) == ("mine", 4)
    for page in PAGES:
        for block in fenced(page, "yaml"):
            read_study(block, page.name)


SAYS = {
    "README.md": f"{TASK}: without final.in.0 the loss goes from", "frontier.md": "if_equals",
    "public.md": "val_loss double", "pages.md": "",
}  # fmt: skip
"""Pages whose Python is run in the newcomer's folder, and what it prints."""
PYTHON_ELSEWHERE = {
    "circuits.md": "tests/circuit/test_guide.py",
    "tasks.md": "below, and tests/circuit/tasks/test_task_files.py",
    "released.md": "below",
    "stories.md": "tests/docs/test_stories.py",
}


def test_no_python_is_left_out() -> None:
    assert {page.name for page in PAGES if fenced(page, "python")} == {*SAYS, *PYTHON_ELSEWHERE}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in SAYS], ids=lambda page: page.name)
def test_python_runs(page: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = from_pretrained(here / MODELS / SPARSE)
    task = task_data(TASK, tokenizer, pairs=16, seed=0)
    text = task.train.tokens[:, : model.config.context]
    names: dict[str, Any] = {"circuit": Circuit.load("circuit.json"), "model": model, "tokenizer": tokenizer}
    names = names | {"task": task, "text": text} if page.name == "pages.md" else {}  # it goes on from circuits.md
    for block in fenced(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    assert SAYS[page.name] in capsys.readouterr().out
    assert page.name != "pages.md" or Path("page.html").read_text().startswith("<!doctype html>")


def test_python_that_loads_a_released_model_looks_for_its_files(here: Path) -> None:
    (block,) = fenced(ROOT / "docs" / "released.md", "python")
    with pytest.raises(InputError, match=r"csp_yolo2/beeg_config\.json"):
        exec(compile(block.replace("s3://bucket/", f"{here}/"), "released.md", "exec"), {})


@pytest.mark.parametrize("part", PROMPT_PARTS)
def test_the_function_of_a_new_task_draws_pairs(part: PromptPart) -> None:
    _, block = fenced(ROOT / "docs" / "tasks.md", "python")
    names = vars(local_tasks).copy()
    exec(compile(block, "tasks.md", "exec"), names)
    pair = names["not_in"](random.Random(0), part)
    assert pair == names["not_in"](random.Random(0), part)
    assert " not" in pair.prompt_a
    assert pair.prompt_a.replace(" not", "").startswith(pair.prompt_b.rsplit("\n", 1)[0])


@pytest.mark.parametrize("command", MAKES)
def test_make_knows_its_targets(command: str) -> None:
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)[0].split()
    assert {word for word in command.split()[1:] if "=" not in word} <= {*targets}  # `make tests` is no error: a folder
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", sorted({command.split()[1] for command in SCRIPTS}))
def test_scripts_know_their_options(script: str) -> None:
    """That they do their work: tests/test_benchmarks.py, tests/cluster."""
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    asked = {
        word for command in SCRIPTS if command.split()[1] == script for word in shlex.split(command) if "--" in word
    }
    assert not {word for word in asked if word.startswith("--") and word not in done.stdout}


@pytest.mark.parametrize("command", RAYS)
def test_ray_knows_its_commands(command: str) -> None:
    from ray.scripts.scripts import cli

    group, words = cli, shlex.split(command)[1:]
    while hasattr(group, "commands"):
        assert words[0] in group.commands
        group, words = group.commands[words[0]], words[1:]
    assert group.make_context(command, words)


@pytest.mark.parametrize("text", [text for text in SPANS if re.match(r"sweeps [a-z-]", text)])
def test_commands_within_sentences_are_there(text: str) -> None:
    command: Any = get_command(sweeps_app)
    words = text.split()[1:]
    while hasattr(command, "commands") and words and words[0] not in ("COMMAND", "...") and words[0][0] != "-":
        assert words[0] in command.commands, text
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("text", [text for text in SPANS if re.match(r"ray [a-z]", text)])
def test_commands_of_ray_within_sentences_are_there(text: str) -> None:
    from ray.scripts.scripts import cli

    command, words = cli, text.split()[1:]
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, text
        command, words = command.commands[words[0]], words[1:]
    assert {word for word in words if word.startswith("--")} <= {name for each in command.params for name in each.opts}


@pytest.mark.parametrize("text", [text for text in SPANS if text.startswith("pytest ")])
def test_tests_within_sentences_are_there(text: str) -> None:
    assert all((ROOT / place).exists() for place in text.split()[1:])
