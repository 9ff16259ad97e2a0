"""What is public takes a path as text or as an object of pathlib, and says where the second cannot be a URI."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit import Circuit, task_data
from circuit.pages import Notes
from docs.conftest import SPARSE
from sparse_model import (
    Checkpoints,
    CorpusConfig,
    InputError,
    SourceConfig,
    TokenDataset,
    Tokenizer,
    TokenizerConfig,
    from_pretrained,
    load_openai,
    prepare,
    save_pretrained,
)
from sweeps import Frontier, Study, load_study, study_at
from sweeps.pages import write_report
from sweeps.show import plot_frontier, study_status
from sweeps.study import read_study


class Named:
    """A path of neither text nor pathlib."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __fspath__(self) -> str:
        return self.path


FORMS: list[Callable[[Path], Any]] = [str, Path, Named]
Here = Callable[[str], Any]


def models(here: Here) -> Any:
    model, tokenizer = from_pretrained(here(f"results/quickstart/models/{SPARSE}"))
    save_pretrained(model, tokenizer, here("saved"))
    return torch.equal(from_pretrained(here("saved"))[0].embedding, model.embedding)


def tokenizers(here: Here) -> Any:
    Tokenizer.load(here(f"results/quickstart/models/{SPARSE}/tokenizer.json")).save(here("again.json"))
    return Tokenizer.load(here("again.json")).vocab_size


def circuits(here: Here) -> Any:
    circuit = Circuit.load(here("circuit.json"))
    circuit.save(here("again.json"))
    return Circuit.load(here("again.json")) == circuit


def notes(here: Here) -> Any:
    written = Notes.none_on(Circuit.load(here("circuit.json")))
    Path(os.fspath(here("notes.json"))).write_text(written.model_dump_json())
    return Notes.load(here("notes.json")) == written


def text(here: Here) -> Any:
    Path(os.fspath(here("text.txt"))).write_text("x = 1\n" * 20_000)
    source = SourceConfig(source=here("text.txt"))
    corpus = CorpusConfig(sources=(SourceConfig(source="idioms", megabytes=0.1), source))
    data = prepare(corpus, TokenizerConfig(vocab_size=257), here("tokens"))
    folder = Path(data.uri)
    return TokenDataset.open(here(str(folder))).n_tokens("train") == data.n_tokens("train")


def checkpoints(here: Here) -> Any:
    kept = Checkpoints(here("kept"))
    kept.save(3, {"step": 3}, {"x": torch.ones(2)})
    found: list[Any] = []
    Checkpoints(here("kept")).restore(lambda progress, read: found.append(progress))
    return found


def tasks(here: Here) -> Any:
    _, tokenizer = from_pretrained(here(f"results/quickstart/models/{SPARSE}"))
    return task_data(here("my_task.jsonl"), tokenizer, pairs=4, seed=0).train is not None


def frontiers(here: Here) -> Any:
    frontier = Frontier(here("results/quickstart"))
    plot_frontier(frontier, here("front.svg"))
    return len(frontier.trials()), Path(os.fspath(here("front.svg"))).exists()


def studies(here: Here) -> Any:
    study = load_study(here("tiny.yaml"), here("elsewhere"))
    content = study.model_dump(exclude={"pruning": {"target_loss"}})
    again = Study.model_validate(content | {"storage": here("elsewhere"), "tasks": [here("my_task.jsonl")]})
    stored = study_at(here("results/quickstart")).name
    return stored, study_status(here("results/quickstart")).trials, Path(again.root).name, len(again.task_sources)


def reports(here: Here) -> Any:
    told = write_report([here("results/quickstart")], here("page"), draw="none")
    return Path(told.address).relative_to(os.fspath(here("page")))


@pytest.mark.parametrize(
    "use", [models, tokenizers, circuits, notes, text, checkpoints, tasks, frontiers, studies, reports]
)
def test_text_and_paths_name_the_same(use: Callable[[Here], Any], after_the_demo: Path, tmp_path: Path) -> None:
    answers = []
    for number, form in enumerate(FORMS):
        home = tmp_path / str(number)
        shutil.copytree(after_the_demo, home, ignore=shutil.ignore_patterns("data"))
        answers.append(use(lambda name, form=form, home=home: form(home / name)))
    assert answers[0]
    assert answers[0] == answers[1] == answers[2]


def test_a_released_checkpoint_of_a_path_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "beeg_config.json").write_text(json.dumps({"vocab_size": 8}))
    with pytest.raises(InputError, match=r"final_model\.pt"):
        load_openai(tmp_path)
    with pytest.raises(InputError, match=r"other/encoder\.json|other/vocab"):
        load_openai(tmp_path, tmp_path / "other")


@pytest.mark.parametrize("use", [from_pretrained, Circuit.load, Frontier, study_at, load_study])
def test_a_uri_that_pathlib_has_shortened_is_named(use: Callable[[Path], Any]) -> None:
    with pytest.raises(InputError, match=r"s3:/bucket/x.*a URI as text"):
        use(Path("s3://bucket/x"))


def test_a_field_says_so_too() -> None:
    with pytest.raises(ValueError, match="a URI as text"):
        SourceConfig(source=Path("s3://bucket/x"))
    with pytest.raises(InputError, match="a URI as text"):
        read_study("name: x", "x", Path("s3://bucket/x"))


def public_callables() -> Iterator[tuple[str, Any]]:
    for package in ("sparse_model", "circuit", "sweeps"):
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing):
                for key, member in inspect.getmembers(
                    thing, lambda member: inspect.isroutine(member) and callable(member)
                ):
                    ours = str(getattr(member, "__module__", "")).partition(".")[0] == package
                    if ours and (key[0] != "_" or key == "__init__"):
                        yield f"{name}.{key}", member
            elif callable(thing):
                yield name, thing


def test_no_public_function_takes_places_as_text_only() -> None:
    opened_by = {"TokenDataset.__init__"}  # `TokenDataset.open` is for users
    found = [
        (name, parameter.name)
        for name, function in public_callables()
        if name not in opened_by
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name in ("uri", "uris", "path", "place", "places", "root", "folder", "source", "tokenizer_uri")
        and "PathLike" not in str(parameter.annotation)
        and "PathOrURI" not in str(parameter.annotation)
    ]
    assert found == []
