"""No code from shared storage, no way out of it, no secrets in what is kept. See docs/security.md."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparse_model.errors import InputError
from sweeps.cli import status_of
from sweeps.frontier.rows import row_uri, write_trial_row
from sweeps.study.study import read_study
from sweeps.study.yamlfile import parse_yaml

Text = Callable[..., str]
ROOT = Path(__file__).parents[2]
PACKAGES = ("sparse_model", "circuit", "sweeps")


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(file, what is called, the call) for every call by a dotted name in the packages."""
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield str(path.relative_to(ROOT)), ast.unparse(node.func), node


BETWEEN_PROCESSES = {"sweeps/engine/tokens.py"}
"""Pickle what one Ray process hands to another, and read none of it from storage."""


def test_nothing_unpickles_or_evaluates() -> None:
    forbidden = ("pickle.", "cloudpickle.", "dill.", "joblib.", "marshal.", "shelve.")
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                if str(path.relative_to(ROOT)) not in BETWEEN_PROCESSES:
                    assert not any(f"{name}.".startswith(forbidden) for name in names), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__"), path


def test_torch_and_numpy_load_no_objects() -> None:
    for path, name, call in calls():
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load":
            assert options.get("weights_only") == "True", path
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle", "False") == "False", path


def test_yaml_is_loaded_in_one_place() -> None:
    loads = [path for path, name, _ in calls() if name.startswith("yaml.") and "load" in name]
    assert loads == ["sweeps/study/yamlfile.py"]


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch {folder}/made']", "!!python/name:os.system"])
def test_yaml_with_code_is_an_error(tag: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1"):
        parse_yaml(f"name: {tag.format(folder=tmp_path)}", "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/b", "..", ".hidden", "a\\b", ""])
def test_names_stay_below_the_storage(study_text: Text, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read_study(study_text({"name": name}), "s")
    with pytest.raises(InputError):
        row_uri(str(tmp_path), "trials", name)
    with pytest.raises(InputError):
        write_trial_row(str(tmp_path / "root"), {"trial": name})
    assert list(tmp_path.iterdir()) == []


SECRETS = ("s3://user:hunter2@bucket/x", "s3://bucket/x?secret_key=hunter2", "https://h/x?X-Amz-Signature=hunter2")


@pytest.mark.parametrize("uri", SECRETS)
def test_credentials_reach_neither_messages_nor_files(
    study_text: Text, uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(study_text())
    for arguments in (
        ["run", str(path), "--storage", uri],
        ["plan", str(path), "--storage", uri],
        ["submit", str(path), "--address", "http://127.0.0.1:1", "--storage", uri],
        ["doctor", str(path), "--storage", uri],
        ["frontier", uri],
        ["status", uri],
    ):
        assert status_of(arguments) == 2, arguments
        said = "".join(capfd.readouterr())
        assert "credentials do not belong in a URI" in said, arguments
        assert "hunter2" not in said, arguments
    path.write_text(study_text({"search.warm_start": [uri]}))
    assert status_of(["run", str(path)]) == 2
    assert "hunter2" not in "".join(capfd.readouterr())
    assert not (tmp_path / "results").exists()


def test_ray_on_this_machine_has_no_dashboard() -> None:
    inits = [call for path, name, call in calls() if name == "ray.init" and path == "sweeps/engine/session.py"]
    options = [{keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords} for call in inits]
    started = [given for given in options if given.get("address") == "'local'"]
    assert started
    assert all(given.get("include_dashboard") == "False" for given in started)
