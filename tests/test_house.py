"""The house itself: its contract is broken on purpose, each name means one thing, and rooms load lazily."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sparse_model", "circuit", "sweeps")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ROOMS = sorted(path.parent for path in FILES if path.name == "__init__.py")
EXPORTING = [room for room in ROOMS if (room / "__init__.pyi").exists()]


def dotted(folder: Path) -> str:
    return ".".join(folder.relative_to(ROOT).parts)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages and the contract, to be spoiled."""
    folder = tmp_path_factory.mktemp("house")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder: Path) -> tuple[int, str]:
    """Exit status of import-linter in a folder, and the contracts that it finds broken."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=folder, capture_output=True, text=True
    )
    broken = [line for line in done.stdout.splitlines() if line.endswith(" BROKEN")]
    return done.returncode, "\n".join(broken) or done.stdout + done.stderr


def test_the_house_keeps_its_contract(copy: Path) -> None:
    status, said = lint(copy)
    assert status == 0, said


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("sparse_model/model/sites.py", "import circuit.tasks.pair", "sweeps → circuit → sparse_model"),
        ("circuit/pruning.py", "from sweeps.frontier import rows", "sweeps → circuit → sparse_model"),
        ("sparse_model/storage/files.py", "from sparse_model.data import tokenizer", "rooms of sparse_model"),
        ("circuit/ablated/compact.py", "def f():\n    from circuit.graph.record import record", "rooms of circuit"),
        ("sweeps/study/study.py", "from sweeps.search.draws import StudySearch", "rooms of sweeps"),
        ("sweeps/a_new_room/__init__.py", "", "rooms of sweeps"),
        ("circuit/tasks/pair.py", "from circuit.tasks import table", "no two files import each other"),
        ("sweeps/search/draws.py", "from ray import tune", "only sweeps.engine imports ray"),
        ("sweeps/commands/doctor.py", "def f():\n    import ray", "only sweeps.engine imports ray"),
    ],
)
def test_a_forbidden_import_breaks_it(copy: Path, file: str, line: str, contract: str) -> None:
    path = copy / file
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{before or ''}\n{line}\n")
    try:
        status, said = lint(copy)
    finally:
        path.write_text(before) if before is not None else shutil.rmtree(path.parent)
    assert status == 1
    assert contract in said


def public_names(path: Path) -> Iterator[str]:
    """Names without underscore that a file's top level defines."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name)) if target else ()


def test_no_public_name_is_defined_twice() -> None:
    places = defaultdict(set)
    for path in FILES:
        for name in public_names(path):
            if not name.startswith("_"):
                places[name].add(str(path.relative_to(ROOT)))
    assert {name: sorted(files) for name, files in places.items() if len(files) > 1} == {}


def test_rooms_are_no_larger_than_a_dozen_files_or_so() -> None:
    sizes = {dotted(room): len([path for path in room.glob("*.py") if path.name != "__init__.py"]) for room in ROOMS}
    assert max(sizes.values()) <= 14, sizes


@pytest.mark.parametrize("room", ROOMS, ids=dotted)
def test_a_room_says_what_it_is(room: Path) -> None:
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text()))


@pytest.mark.parametrize("room", EXPORTING, ids=dotted)
def test_what_a_room_exports_is_there(room: Path) -> None:
    """And is named like no file or room in it, which would hide it."""
    module = importlib.import_module(dotted(room))
    if room.name != "engine":  # which imports Ray
        assert all(getattr(module, name) is not None for name in module.__all__)
    assert not {path.stem for path in room.iterdir()} & set(module.__all__)


@pytest.mark.parametrize(
    ("imported", "left_alone"),
    [
        ("from sparse_model import ModelConfig", ("torch", "tokenizers", "fsspec")),
        ("from circuit import PruneConfig", ("torch", "networkx")),
        ("from circuit import Circuit", ("networkx", "optuna", "circuit.search.targets.masks")),
        ("from sweeps import load_study", ("ray", "optuna", "matplotlib", "duckdb")),
        ("from sweeps import Frontier", ("ray", "optuna", "matplotlib")),
        ("import sweeps.search.draws", ("ray",)),
    ],
)
def test_a_name_costs_no_more_than_itself(imported: str, left_alone: tuple[str, ...]) -> None:
    script = f"{imported}; import sys; print([name for name in {left_alone} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert said.strip() == "[]"


def test_a_trials_own_process_imports_no_torch() -> None:
    """The head of a cluster holds one for each trial: torch would be more than half of its memory."""
    code = "import sys, sweeps.engine.trial, sweeps.engine.train, sweeps.engine.prune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
