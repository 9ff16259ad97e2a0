"""Tasks in files: every mistake is told with its line, and the guide's own example works."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuit.tasks import TaskData, build_file_task, is_file, read_task_file, source_name, task_data
from circuit.tasks.audit import audit
from sparse_model.data.config import TokenizerConfig
from sparse_model.data.idioms.programs import programs
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError

Write = Callable[..., str]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(itertools.islice(programs(seed=1), 1000), TokenizerConfig(vocab_size=1024))


def pair(number: int, **changes: Any) -> dict[str, Any]:
    start = f"x = {number}\n"
    sound = {"prompt_a": f"{start}for x", "answer_a": " in", "prompt_b": f"{start}while x", "answer_b": ":"}
    return {key: value for key, value in (sound | changes).items() if value is not None}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(*lines: Any, name: str = "mine.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return str(path)

    return written


def prompts(data: TaskData, tokenizer: Tokenizer) -> tuple[set[str], set[str]]:
    train, heldout = (
        {tokenizer.decode(row[:n].tolist()) for row, n in zip(batch.tokens, batch.length, strict=True)}
        for batch in (data.train, data.heldout)
    )
    return train, heldout


def test_pairs_become_rows_with_the_answers_swapped(write: Write, tokenizer: Tokenizer) -> None:
    uri = write(*(pair(n) for n in range(12)), "", name="for_or_while.jsonl")
    data = task_data(uri, tokenizer, pairs=4, seed=0)
    assert (data.name, data.train.n_pairs, data.heldout.n_pairs) == ("for_or_while", 4, 4)
    right, wrong = tokenizer.encode(" in"), tokenizer.encode(":")
    assert data.train.right.tolist() == [*right, *wrong] * 4
    assert data.train.wrong.tolist() == [*wrong, *right] * 4
    train, heldout = prompts(data, tokenizer)
    assert not train & heldout
    assert train | heldout < {p[k] for n in range(12) for p in [pair(n)] for k in ("prompt_a", "prompt_b")}
    again, other = (prompts(task_data(uri, tokenizer, pairs=4, seed=seed), tokenizer) for seed in (0, 1))
    assert again == (train, heldout) != other


def test_half_is_held_out_of_few_pairs(write: Write, tokenizer: Tokenizer) -> None:
    data = task_data(write(*(pair(n) for n in range(5))), tokenizer, pairs=64, seed=0)
    assert (data.train.n_pairs, data.heldout.n_pairs) == (3, 2)


def test_a_split_in_the_file_is_kept_to(write: Write, tokenizer: Tokenizer) -> None:
    lines = [pair(n, split="train" if n < 6 else "heldout") for n in range(8)]
    data = task_data(write(*lines), tokenizer, pairs=5, seed=0)
    assert (data.train.n_pairs, data.heldout.n_pairs) == (5, 2)
    assert prompts(data, tokenizer)[1] == {line[key] for line in lines[6:] for key in ("prompt_a", "prompt_b")}
    with pytest.raises(InputError, match="2 pairs to train on and 0 held out"):
        task_data(write(*(pair(n, split="train") for n in range(2))), tokenizer, pairs=5, seed=0)


MISTAKES = {
    "not JSON": "{",
    "list; allowed: an object": "[]",
    "answer_a is missing": pair(0, answer_a=None),
    "prompt_b is 3; allowed: a text": pair(0, prompt_b=3),
    "prompt_a is ''": pair(0, prompt_a=""),
    "brackets nested too deep": "[" * 100_000,
    r"prompt_a is 'x = \ud800\nfor x'; allowed: whole characters": pair(0, prompt_a="x = \ud800\nfor x"),
    "key 'answer_a' is there twice; allowed: each once": json.dumps(pair(0))[:-1] + ', "answer_a": " is"}',
    "unknown key 'answer'": pair(0, answer="x"),
    "split is 'test'; allowed: train or heldout": pair(0, split="test"),
    "answer_a ' in items' is 2 tokens after its prompt (' in' ' items'); allowed: one": pair(0, answer_a=" in items"),
    "answer_b 'e' changes its prompt's tokens": pair(0, prompt_b="x = 0\nwhil", answer_b="e"),
    "both prompts have the same answer": pair(0, answer_b=" in"),
    "the two prompts are the same": pair(0, prompt_b="x = 0\nfor x"),
    "a prompt of line 2 is there again; allowed: each prompt once": pair(2, prompt_b="x = 2\nwhile y"),
    "a prompt of line 1 is there again": pair(1),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_told_with_its_line(message: str, write: Write, tokenizer: Tokenizer) -> None:
    uri = write(pair(1), pair(2), "", MISTAKES[message], pair(5))
    with pytest.raises(InputError) as error:
        task_data(uri, tokenizer, pairs=2, seed=0)
    assert str(error.value).startswith(f"{uri}:4: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_mistakes_are_told_at_once_but_not_thousands(write: Write, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError) as error:
        task_data(write(pair(0), pair(0, answer_a=None), "{", pair(1)), tokenizer, pairs=2, seed=0)
    assert [line.split(".jsonl:")[1].split(":")[0] for line in str(error.value).splitlines()] == ["2", "3"]
    with pytest.raises(InputError) as error:
        task_data(write(*["{"] * 500), tokenizer, pairs=2, seed=0)
    assert len(str(error.value).splitlines()) == 21
    assert str(error.value).endswith("and 480 more mistakes")


def test_files_as_such(write: Write, tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert [is_file(source) for source in ("a/b.jsonl", "s3://b/x.jsonl?region=eu", "var_if")] == [True, True, False]
    assert source_name("s3://bucket/x.jsonl?region=eu") == "x"
    with pytest.raises(InputError, match="var_if is in the table already"):
        source_name("some/var_if.jsonl")
    with pytest.raises(InputError, match="cannot name a file"):
        source_name("some/two words.jsonl")
    with pytest.raises(InputError, match="no pair in it"):
        read_task_file(write("", ""))
    with pytest.raises(InputError, match="does not exist"):
        read_task_file(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(InputError, match="split is missing"):
        read_task_file(write(pair(0), pair(1, split="train")))


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-16", "not a text file in UTF-8: byte 0xff in line 1, and it begins as UTF-16 does; save it as UTF-8"),
        ("utf-32", "begins as UTF-32 does"),
        ("latin-1", "not a text file in UTF-8: byte 0xe9 in line 2; save it as UTF-8"),
    ],
)
def test_other_encodings_are_refused_by_name(encoding: str, words: str, tmp_path: Path) -> None:
    lines = [json.dumps(pair(n, prompt_a=f"é = {n}\nfor x" if n else None), ensure_ascii=False) for n in range(3)]
    lines[0] = json.dumps(pair(0))
    (tmp_path / "mine.jsonl").write_bytes("\n".join(lines).encode(encoding))
    with pytest.raises(InputError, match="UTF-8") as refused:
        read_task_file(str(tmp_path / "mine.jsonl"))
    assert words in str(refused.value)


def test_byte_order_marks_and_line_ends_of_windows_do_no_harm(tmp_path: Path) -> None:
    text = "".join(json.dumps(pair(n, prompt_a=f"é = {n}\nfor x"), ensure_ascii=False) + "\r\n" for n in range(3))
    (tmp_path / "mine.jsonl").write_bytes(text.encode("utf-8-sig"))
    assert [pair.prompt_a for pair in read_task_file(str(tmp_path / "mine.jsonl")).pairs] == [
        f"é = {n}\nfor x" for n in range(3)
    ]


def test_the_guides_example_is_a_task(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The script in the guide writes a file that is read back with the split it asks for."""
    guide = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text()
    script = guide.split("```python\n# for_or_if.py")[1].split("```")[0]
    uri = str(tmp_path / "for_or_if.jsonl")
    exec(compile("#" + script.replace("for_or_if.jsonl", uri), "guide", "exec"), {})
    data = build_file_task(read_task_file(uri), tokenizer, n_train=64, n_heldout=64, seed=0)
    assert (data.name, data.train.n_pairs, data.heldout.n_pairs) == ("for_or_if", 64, 64)
    assert audit(data, tokenizer).told == ()
    lines = guide.split("```json\n")[1].split("```")[0].splitlines()
    (tmp_path / "shown.jsonl").write_text("\n".join(lines))
    assert len(read_task_file(str(tmp_path / "shown.jsonl")).pairs) == len(lines) == 2
