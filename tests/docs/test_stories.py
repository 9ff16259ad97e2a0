"""The stories of docs/stories.md: prompts, hit counts and set values are what the model that lies beside them gives."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparse_model import from_pretrained
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.model.transformer import SparseTransformer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from stories import FOLDER, STORIES, TASKS, controls, hits, nodes_told, only_token, prompts_of  # noqa: E402

PAGE = (ROOT / "docs" / "stories.md").read_text()
Model = tuple[SparseTransformer, Tokenizer]
each_task = pytest.mark.parametrize("task", TASKS)
each_story = pytest.mark.parametrize("story", STORIES)


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Model]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {story: from_pretrained(FOLDER / story / "model") for story in STORIES}
    torch.set_num_threads(threads)


@each_story
@each_task
def test_there_are_twenty_prompts_of_each_kind_with_answers_of_one_token(
    story: str, task: str, models: dict[str, Model]
) -> None:
    model, tokenizer = models[story]
    prompts = prompts_of(FOLDER / story, task)
    assert len({prompt.prompt for prompt in prompts}) == len(prompts) == 40
    assert sum(prompt.control for prompt in prompts) == 20
    for prompt in prompts:
        assert only_token(tokenizer, prompt.right) != only_token(tokenizer, prompt.wrong)
        assert len(tokenizer.encode(prompt.prompt)) <= model.config.context


@each_task
def test_controls_are_made_as_told(task: str, models: dict[str, Model]) -> None:
    made = controls(*models["best"], FOLDER / "best", task)
    assert made == [prompt for prompt in prompts_of(FOLDER / "best", task) if prompt.control]


@each_story
@each_task
def test_the_page_tells_the_hits(story: str, task: str, models: dict[str, Model]) -> None:
    (row,) = re.findall(rf"^\| {story} \| `{task}` \|.*$", PAGE, flags=re.M)
    told = [int(count) for count in re.findall(r"(\d+) of 20", row)]
    found = hits(*models[story], FOLDER / story, task)
    assert told == [row.model for row in found] + [row.circuit for row in found]


def test_the_page_tells_what_set_values_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.S | re.M)
    exec(compile(block, "stories.md", "exec"), {})
    margins = {figure.replace("-", "−") for figure in capsys.readouterr().out.split()}
    sets = " ".join(re.findall(r"^\*\*Set\.\*\*.*?\n\n", PAGE, flags=re.S | re.M))
    told = set(re.findall(r"−?\d+\.\d", sets))
    held = {"1.8", "−1.9", "−2.4", "0.3", "2.9"}
    assert told - held == margins


def test_nodes_are_told(models: dict[str, Model]) -> None:
    told = list(nodes_told(*models["first"], FOLDER / "first", "bracket_counting"))
    (line,) = (line for line in told if line.startswith("layers.0.attn.v.37"))
    assert len(told) == 10
    assert "' [[' 1.7" in line
    assert "'],' 1.7" in line
