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
from sparse_model.errors import InputError
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
    margins = [figure.replace("-", "−") for figure in capsys.readouterr().out.split()]
    of = {task: margins[8 * i : 8 * i + 8] for i, task in enumerate(("brackets", "sets", "quotes"))}
    first, best = ({task: m[a : a + 2] + m[a + 4 : a + 6] for task, m in of.items()} for a in (0, 2))
    paragraphs = re.findall(r"^\*\*Set\.\*\*.*?\n\n", PAGE, flags=re.S | re.M)
    told = [re.findall(r"−?\d+\.\d", re.sub(r"held\s+at\s+−?[\d.]*\d", "", text)) for text in paragraphs]
    in_order = [first[task] for task in ("brackets", "sets", "quotes")]
    assert told == in_order + [best[task] for task in ("sets", "brackets", "quotes")]


@pytest.mark.parametrize(
    ("task", "node", "figures"),
    [
        ("set_or_string_fixedvarname", "layers.2.attn.k.113", ["' set' -1.1"]),
        ("set_or_string_fixedvarname", "layers.2.attn.k.122", ["' set' -5.0"]),
        ("bracket_counting", "layers.1.attn.k.41", ["'],' 1.8", "' [[' 1.0", "' [' 0.7"]),
        ("bracket_counting", "layers.1.attn.v.41", ["' [' 2.1"]),
        ("single_double_quote", "layers.1.attn.k.74", ["')\\n' 3.0", "'.add' 3.0", '"(\'" 3.2']),
    ],
)
def test_nodes_of_the_best_model_do_what_the_page_says(
    task: str, node: str, figures: list[str], models: dict[str, Model]
) -> None:
    (line,) = [told for told in nodes_told(*models["best"], FOLDER / "best", task) if told.startswith(node)]
    assert all(figure in line for figure in figures)


def test_controls_need_to_know_which_lines_are_odd(models: dict[str, Model]) -> None:
    with pytest.raises(InputError, match="does not say once which lines of it are odd"):
        controls(*models["first"], FOLDER / "first", "bracket_counting")


def test_nodes_are_told(models: dict[str, Model]) -> None:
    told = list(nodes_told(*models["first"], FOLDER / "first", "bracket_counting"))
    (line,) = (line for line in told if line.startswith("layers.0.attn.v.37"))
    assert len(told) == 10
    assert "' [[' 1.7" in line
    assert "'],' 1.7" in line
