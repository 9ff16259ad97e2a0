"""What a study's folder takes, what of it can go, and that nothing else goes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.cli import status_of
from sweeps.commands.folder import said
from sweeps.frontier.compaction import compact_rows
from sweeps.frontier.rows import write_circuit_rows, write_trial_row
from sweeps.show.disk import Use, disk_use, removable
from sweeps.study.study import read_study

Text = Callable[..., str]
ENDED, FAILED, GONE = (f"t{i:05d}-0123abcd" for i in range(3))


@pytest.fixture
def cluttered(study_text: Text, tmp_path: Path) -> Path:
    """A finished study of two trials, and what is left of a third; checkpoints, tokens and halves of files stayed."""
    study = read_study(study_text({"search.trials": 2, "search.startup": 1}), "s")
    root = Path(study.root)
    for trial, status in ((ENDED, "ok"), (FAILED, "failed")):
        write_circuit_rows(study.root, trial, [])
        write_trial_row(study.root, {"trial": trial, "study": study.name, "status": status, "data": "needed"})
    (root / "study.yaml").write_text(study.to_yaml())
    for trial in (ENDED, FAILED, GONE):
        put(root / "models" / trial / "model.safetensors", 1000)
        put(root / "circuits" / trial / "task.json", 100)
    put(root / "report" / "circuits" / GONE / "task.html", 10)
    for trial in (ENDED, GONE):
        put(root / "ray" / "train" / trial / "checkpoints-x" / "state", 5000)
    put(root / "models" / "somebody-elses" / "weights", 7)
    put(root / "models" / ENDED / f".partial-{'a' * 32}", 3, age=7200)
    put(root / "models" / FAILED / f".partial-{'b' * 32}", 3)
    for dataset in ("needed", "old"):
        put(root.parent / "data" / dataset / "train-00000.npy", 2000)
    return root


def put(path: Path, size: int, age: float = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age,) * 2)


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "driver" not in path.parts
    }


SPARE = {
    f"tiny/models/{GONE}/model.safetensors",
    f"tiny/circuits/{GONE}/task.json",
    f"tiny/report/circuits/{GONE}/task.html",
    f"tiny/models/{ENDED}/.partial-{'a' * 32}",
    f"tiny/ray/train/{ENDED}/checkpoints-x/state",
    f"tiny/ray/train/{GONE}/checkpoints-x/state",
    "data/old/train-00000.npy",
    "data/needed/train-00000.npy",
}


@pytest.mark.parametrize("compact", [False, True])
def test_what_nobody_needs_goes_and_nothing_else(
    cluttered: Path, compact: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if compact:
        compact_rows(str(cluttered))
    before = files(cluttered.parent)
    assert status_of(["clean", str(cluttered)]) == 0  # nobody at a terminal, no --yes
    said_first = capsys.readouterr().out
    assert files(cluttered.parent) == before
    assert "nothing was removed; --yes" in said_first
    for gone in (GONE, ".partial-aaaa", ENDED, "data/old"):
        assert gone in said_first
    assert status_of(["clean", str(cluttered), "--yes"]) == 0
    assert before - files(cluttered.parent) == SPARE
    assert f"removed {said(Use(8, 1000 + 100 + 10 + 3 + 2 * 5000 + 2 * 2000))}" in capsys.readouterr().out
    assert status_of(["clean", str(cluttered), "--yes"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_one_kind_alone(cluttered: Path) -> None:
    before = files(cluttered.parent)
    assert status_of(["clean", str(cluttered), "--yes", "--only", "checkpoints"]) == 0
    assert before - files(cluttered.parent) == {f"tiny/ray/train/{ENDED}/checkpoints-x/state"}


def test_tokens_stay_while_a_study_beside_may_need_them(cluttered: Path, study_text: Text) -> None:
    other = cluttered.parent / "other"
    other.mkdir()
    (other / "study.yaml").write_text(study_text({"name": "other"}))
    assert removable(str(cluttered), ["tokens"]) == [], "it has no row that says which tokens are its own"
    write_trial_row(str(other), {"trial": ENDED, "study": "other", "status": "ok", "data": "old"})
    assert [one.uri.rsplit("/", 1)[-1] for one in removable(str(cluttered), ["tokens"])] == ["needed"]


def test_a_trial_that_may_go_on_keeps_all_it_has(cluttered: Path, study_text: Text) -> None:
    (cluttered / "study.yaml").write_text(study_text({"search.trials": 3, "search.startup": 1}))
    assert {one.uri.split("/tiny/")[1] for one in removable(str(cluttered), ["orphans", "checkpoints"])} == {
        f"models/{ENDED}/.partial-{'a' * 32}",
        f"ray/train/{ENDED}",
    }


def test_a_study_that_is_run_is_left_alone(cluttered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sweeps.engine.lease import holding_lease

    before = files(cluttered.parent)
    with holding_lease(str(cluttered), lambda line: None):
        assert status_of(["clean", str(cluttered), "--yes"]) == 2
        assert "it is being run already" in capsys.readouterr().err
    assert files(cluttered.parent) == before


def test_what_a_folder_takes(cluttered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    used = disk_use(str(cluttered))
    assert used["models"] == Use(6, 3 * 1000 + 7 + 2 * 3)
    assert used["circuits"] == Use(3, 300)
    assert used["checkpoints"] == Use(2, 10_000)
    assert used["tokens"] == Use(2, 4000)
    assert used["rows"].files == 4
    assert status_of(["status", str(cluttered), "--disk"]) == 0
    told = capsys.readouterr().out
    assert "checkpoints: 10.0 kB in 2 files" in told
    assert "sweeps clean" in told


def test_in_an_object_store(cluttered: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    store = fsspec.filesystem("s3", endpoint_url=s3_server, use_listings_cache=False)
    store.mkdir("tidy")
    store.put(str(cluttered.parent), "tidy/x", recursive=True)
    before = set(store.find("tidy"))
    assert status_of(["clean", "s3://tidy/x/tiny", "--yes", "--only", "checkpoints", "--only", "tokens"]) == 0
    gone = before - set(store.find("tidy"))
    assert {name.split("/x/")[1] for name in gone} == {
        f"tiny/ray/train/{ENDED}/checkpoints-x/state",
        "data/old/train-00000.npy",
        "data/needed/train-00000.npy",
    }


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (Use(1, 999), "999 bytes in 1 file"),
        (Use(2, 1500), "1.5 kB in 2 files"),
        (Use(1000, 2 * 10**12), "2.0 TB in 1,000 files"),
    ],
)
def test_sizes_in_words(use: Use, words: str) -> None:
    assert said(use) == words
