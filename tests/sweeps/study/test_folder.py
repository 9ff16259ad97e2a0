"""A study file kept beside its results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparse_model.errors import InputError
from sweeps.study.folder import check_storage, differences, keep_study, study_at
from sweeps.study.study import read_study

Text = Callable[..., str]


def test_differences_are_named_by_path() -> None:
    before = {"a": {"b": 1, "c": [1]}, "d": None}
    assert differences(before, before) == []
    assert differences(before, {"a": {"b": 2, "c": [1]}, "d": None, "e": 5}) == [("a.b", 1, 2), ("e", None, 5)]


@pytest.mark.parametrize(
    "change",
    [
        {"models_from": ["other"]},
        {"resources.concurrency": 1},
        {"report": "all"},
        {"pause_after": 1},
        {"callbacks": ["mlflow"]},
    ],
)
def test_what_results_do_not_depend_on_may_change(change: dict[str, object], study_text: Text) -> None:
    keep_study(read_study(study_text(), "s"))
    check_storage(read_study(study_text(change), "s"))


def task_file(folder: Path, word: str = "x") -> Path:
    folder.mkdir(exist_ok=True)
    pair = {"prompt_a": f"({word}", "answer_a": ")", "prompt_b": f"[{word}", "answer_b": "]"}
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(pair | {"split": split}) + "\n" for split in ("train", "heldout")))
    return path


def test_a_study_is_what_was_asked_wherever_its_files_are(study_text: Text, tmp_path: Path) -> None:
    """Files of tasks travel with the study: unpacked elsewhere, with the first folder gone, it is the same study."""

    def asked(folder: str, word: str = "x") -> dict[str, object]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "text.txt").write_text("words")
        task = task_file(tmp_path / folder, word)
        return {
            "tasks": ["else_elif", str(task)],
            "corpus.sources": [{"source": str(tmp_path / folder / "text.txt")}],
            "search.warm_start": [str(tmp_path / folder / "earlier")],
        }

    first = read_study(study_text(asked("here")), "s")
    check_storage(first)
    kept = keep_study(first)
    assert kept.tasks[1] == f"{first.root}/tasks/own.jsonl"
    for path in (tmp_path / "here").iterdir():
        path.unlink()
    again = read_study(study_text(asked("there")), "s")
    check_storage(again)
    assert study_at(first.root).task_sources == kept.task_sources
    changed = read_study(study_text(asked("there", "y")), "s")
    with pytest.raises(InputError, match=r"tasks is .*own.jsonl of sha256"):
        check_storage(changed)
    with pytest.raises(InputError, match="seeds"):
        check_storage(read_study(study_text({**asked("there"), "seeds": [3]}), "s"))
