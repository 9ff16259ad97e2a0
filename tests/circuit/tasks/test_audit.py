"""What gives answers away is told: our own tasks stay within bounds, planted leaks do not."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from circuit.tasks import TASKS, Audit, Pair, Task, TaskData, audited, build_harder, build_task
from circuit.tasks.audit import BOUNDS, audit, prompts_of, read_names, rule_bound, words_of
from circuit.tasks.context import UNFAMILIAR
from sparse_model.data.config import TokenizerConfig
from sparse_model.data.idioms import names
from sparse_model.data.idioms.programs import programs
from sparse_model.data.tokenizer import Tokenizer

ALWAYS_THE_SAME_LINE = ("set_or_string_fixedvarname", "else_elif", "while_return_true")
NAMES = ("a", "b", "x", "y", "count", "total", "size", "index")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(itertools.islice(programs(seed=1), 4000), TokenizerConfig(vocab_size=1500))


@pytest.fixture(scope="module")
def built(tokenizer: Tokenizer) -> dict[str, TaskData]:
    return {task.name: build_task(task, tokenizer, n_train=160, n_heldout=160, seed=3) for task in TASKS.values()}


@pytest.fixture(scope="module")
def audits(tokenizer: Tokenizer, built: dict[str, TaskData]) -> dict[str, Audit]:
    return {name: audit(data, tokenizer, TASKS[name].belongs) for name, data in built.items()}


@pytest.mark.parametrize("name", TASKS)
def test_nothing_but_the_cue_gives_an_answer_away(name: str, audits: dict[str, Audit]) -> None:
    found = audits[name]
    assert found.told == (), found.said()
    assert found.prompts == 640
    for measure in found.belongs:
        assert getattr(found, measure) > BOUNDS[measure], f"{measure} is said to belong to the task, and is not there"
    if name not in ALWAYS_THE_SAME_LINE:
        assert (found.unseen_words, found.cue_lines_in_both) == (1.0, 0.0)
        assert found.cue_lines >= 12


def test_what_leaked_by_accident_no_longer_does(audits: dict[str, Audit]) -> None:
    for name in ("fstring_brace", "if_equals", "for_while", "if_ternary", "var_if"):
        found = audits[name]
        assert found.last_token == 0.5
        assert (found.last_token_differs, found.unknown_names) == (0, 0)


def test_training_prompts_hold_no_word_that_is_for_held_out_ones(
    tokenizer: Tokenizer, built: dict[str, TaskData]
) -> None:
    for name, data in built.items():
        for prompt in prompts_of(data.train, tokenizer):
            said = {piece for word in words_of(prompt.text) for piece in word.split("_")}
            assert not said & names.HELDOUT_NAMES, f"{name}: {prompt.text}"


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_harder_variant_of_pairs_that_keep_the_rules(
    name: str, tokenizer: Tokenizer, built: dict[str, TaskData]
) -> None:
    harder = build_harder(TASKS[name], tokenizer, n_pairs=40, seed=1)
    assert harder is not None
    assert harder.n_pairs == 40
    longer = [float(batch.length.float().mean()) for batch in (built[name].heldout, harder)]
    cues = {word for prompt in prompts_of(harder, tokenizer) for word in words_of(prompt.cue)}
    assert longer[1] > longer[0] or cues & set(UNFAMILIAR)


def planted(pair: Callable[[int, random.Random], tuple[str, str, str, str]]) -> Task:
    """A task of pairs that a number and chance decide; its context varies in length."""

    def drawn(rng: random.Random) -> Pair:
        n = rng.randrange(10_000)
        before = "".join(f"{rng.choice(NAMES)} = {rng.randrange(100)}\n" for _ in range(rng.randrange(2, 6)))
        a, answer_a, b, answer_b = pair(n, rng)
        return Pair(before + a, answer_a, before + b, answer_b)

    return Task("planted", "", drawn)


def clean(n: int, rng: random.Random) -> tuple[str, str, str, str]:
    name = f"{NAMES[n % 8]}_{n}"
    return f"{name} = 1\nfor {name}", " in", f"{name} = 1\nif {name}", " =="


LEAKS: dict[str, Callable[[int, random.Random], tuple[str, str, str, str]]] = {
    "last_token": lambda n, _: (f"z{n} = 1\nfor value", " in", f"z{n} = 1\nif other", " =="),
    "words": lambda n, _: (f"z{n} = 1\nfor value, z{n}", " in", f"z{n} = 1\nif other, z{n}", " =="),
    "words of numbers": lambda n, _: (f"z{n} = 1\nfor x[1], z{n}", " in", f"z{n} = 1\nif x[2], z{n}", " =="),
    "lines_differ": lambda n, _: (f"z{n} = 1\nfor z{n}", " in", f"z{n} = 2\nif z{n}", " =="),
    "unknown_names": lambda n, _: (f"for z{n}", " in", f"if z{n}", " =="),
    "cue_lines_in_both": lambda n, rng: ("x = 1\nfor x", " in", "x = 1\nif x", " =="),
}


def test_a_clean_task_is_told_of_nothing(tokenizer: Tokenizer) -> None:
    found = audit(build_task(planted(clean), tokenizer, n_train=120, n_heldout=120, seed=0), tokenizer)
    assert found.told == ()
    assert found.belongs == {}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_planted_leak_is_told(leak: str, tokenizer: Tokenizer) -> None:
    found = audit(build_task(planted(LEAKS[leak]), tokenizer, n_train=120, n_heldout=120, seed=0), tokenizer)
    assert leak.split()[0] in found.told
    assert any("LEAK" in line for line in found.said())


def test_a_length_that_tells_is_told(tokenizer: Tokenizer) -> None:
    """Prompts of 4 lines all, but that one of each pair has a token more."""

    def drawn(rng: random.Random) -> Pair:
        before = "".join(f"{rng.choice(NAMES)} = {rng.randrange(10)}\n" for _ in range(4))
        return Pair(f"{before}for x in y[1", "]", f"{before}for x in y(", ")")

    found = audit(build_task(Task("planted", "", drawn), tokenizer, n_train=80, n_heldout=80, seed=0), tokenizer)
    assert "length" in found.told
    assert found.length == 1


def test_a_leak_in_a_file_is_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = []
    for n in range(120):
        start, number = f"{NAMES[n % 8]}{n} = {n}\n", n % 10
        pair = {"prompt_a": f"{start}total = {number}\nfor total", "answer_a": " in"}
        lines.append(json.dumps(pair | {"prompt_b": f"{start}count = {number}\nif count", "answer_b": " =="}))
    (tmp_path / "leaky.jsonl").write_text("\n".join(lines))
    found = audited(str(tmp_path / "leaky.jsonl"), tokenizer, pairs=256, seed=0)
    assert {"last_token", "last_token_differs", "lines_differ", "words"} <= set(found.told)
    assert (found.train_pairs, found.heldout_pairs) == (60, 60)


def test_few_prompts_prove_little() -> None:
    assert rule_bound(10_000) == 0.6
    assert rule_bound(64) == 0.5 + 3 * 0.5 / 8


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("for x", set()),
        ("for i, x in values:", {"values"}),
        ("while x", {"x"}),
        ("if x == True", {"x"}),
        ("x", set()),
        ("y = a if x", {"a", "x"}),
        ("a, b = b,", {"b"}),
        ("f = lambda x", set()),
        ("def f(a=1, b", set()),
        ("self.width =", set()),
        ('print(f"total count', set()),
        ("x = {'total", set()),
        ("with open(output_path, ", {"output_path"}),
        ("load(size=n", {"load", "n"}),
    ],
)
def test_names_that_a_line_reads(line: str, read: set[str]) -> None:
    assert read_names(line) == read
