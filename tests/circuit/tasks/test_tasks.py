"""The rules of METHOD section 5, over the whole table, with a real vocabulary of 2048 tokens."""

import itertools
import random
from collections import Counter

import pytest
import torch

from circuit.tasks import TASKS, Pair, Task, TaskData, build_task, example, task_named
from circuit.tasks.build import LONGEST_PROMPT
from sparse_model.data.config import TokenizerConfig
from sparse_model.data.idioms.programs import programs
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError

METHOD_ORDER = (
    "single_double_quote final_kwarg set_or_string set_or_string_fixedvarname class_init with_as bracket_brace "
    "with_open bracket_counting for_while else_elif fstring_brace if_ternary var_swap indent_for lambda_func "
    "if_equals enumerate_range var_if while_return_true"
)
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = itertools.islice(programs(seed=1), 6000)
    return Tokenizer.train(texts, TokenizerConfig(vocab_size=2048))


@pytest.fixture(scope="module")
def built(tokenizer: Tokenizer) -> dict[str, TaskData]:
    return {task.name: build_task(task, tokenizer, n_train=96, n_heldout=32, seed=3) for task in TASKS.values()}


def drawn(task: Task, count: int = 60) -> list[Pair]:
    rng = random.Random(5)
    return [task.pair(rng) for _ in range(count)]


def prompts(batch_tokens: torch.Tensor, length: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row[:n].tolist()) for row, n in zip(batch_tokens, length, strict=True)]


def test_the_table_is_methods_in_its_order() -> None:
    assert " ".join(TASKS) == METHOD_ORDER
    assert all(name == task.name for name, task in TASKS.items())


@every_task
def test_prompt_with_completion_is_the_beginning_of_a_program(task: Task) -> None:
    for pair in drawn(task):
        for text in (pair.prompt_a + pair.completion_a, pair.prompt_b + pair.completion_b):
            last_line = text.splitlines()[-1]
            indent = " " * (len(last_line) - len(last_line.lstrip()))
            program = f"{text}{indent}    pass\n" if last_line.endswith(":") else text
            code = compile(program, task.name, "exec")  # raises SyntaxError for what is no program
            assert len(code.co_code) > len(compile("", task.name, "exec").co_code), program


@every_task
def test_the_prompts_of_a_pair_differ_in_the_line_of_the_cue_only(task: Task) -> None:
    for pair in drawn(task):
        lines = itertools.zip_longest(pair.prompt_a.split("\n"), pair.prompt_b.split("\n"))
        assert sum(a != b for a, b in lines) == 1, pair


@every_task
def test_rows_keep_the_rules_as_tokenised(task: Task, built: dict[str, TaskData], tokenizer: Tokenizer) -> None:
    data = built[task.name]
    assert (data.train.n_pairs, data.heldout.n_pairs) == (96, 32)
    for batch in (data.train, data.heldout):
        assert batch.tokens.dtype == batch.length.dtype == batch.right.dtype == batch.wrong.dtype == torch.int64
        assert batch.tokens.shape == (2 * batch.n_pairs, int(batch.length.max()))
        assert int(batch.length.max()) <= LONGEST_PROMPT
        assert torch.equal(batch.right[0::2], batch.wrong[1::2])
        assert torch.equal(batch.wrong[0::2], batch.right[1::2])
        assert bool((batch.right != batch.wrong).all())
        for prompt, answer in zip(prompts(batch.tokens, batch.length), batch.right.tolist(), strict=True):
            text = tokenizer.decode(prompt)
            assert tokenizer.encode(text) == list(prompt)
            assert tokenizer.encode(text + tokenizer.decode([answer])) == [*prompt, answer]
        padding = torch.arange(batch.tokens.shape[1]) >= batch.length[:, None]
        assert not batch.tokens[padding].any()


@every_task
def test_no_prompt_is_drawn_twice(task: Task, built: dict[str, TaskData]) -> None:
    data = built[task.name]
    rows = [row for batch in (data.train, data.heldout) for row in prompts(batch.tokens, batch.length)]
    assert len(set(rows)) == len(rows)


@every_task
def test_prompts_vary_in_length_and_context(task: Task, built: dict[str, TaskData]) -> None:
    batch = built[task.name].train
    assert len(set(batch.length.tolist())) > 15
    assert len({tuple(row) for row in batch.tokens[:, :3].tolist()}) > 15


@pytest.mark.parametrize("name", ["class_init", "var_swap"])
def test_no_answer_prevails_where_names_are_the_answers(name: str, built: dict[str, TaskData]) -> None:
    counts = Counter(built[name].train.right.tolist())
    assert max(counts.values()) < 0.3 * counts.total()


def test_the_fixed_name_is_fixed_and_the_free_one_free() -> None:
    def last_words(name: str) -> set[str]:
        return {pair.prompt_a.split()[-1] for pair in drawn(TASKS[name])}

    assert last_words("set_or_string_fixedvarname") == {"current"}
    assert len(last_words("set_or_string")) >= 5


def test_only_the_line_of_the_cue_tells_set_from_string() -> None:
    for pair in drawn(TASKS["set_or_string"]):
        name = pair.prompt_a.split()[-1]
        uses = [line for line in pair.prompt_a.splitlines() if line.strip().startswith((f"{name} ", f"{name}."))]
        assert [line.strip() for line in uses] == [f"{name} = set()"], pair


def test_same_name_and_seed_give_the_same_data(tokenizer: Tokenizer) -> None:
    task = TASKS["var_swap"]
    one, two, other = (build_task(task, tokenizer, n_train=8, n_heldout=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.train.tokens, two.train.tokens)
    assert torch.equal(one.heldout.right, two.heldout.right)
    assert prompts(one.train.tokens, one.train.length) != prompts(other.train.tokens, other.train.length)
    assert example(task) == example(task)


def test_the_control_of_a_few_pairs_is_neither_the_task_nor_its_opposite(tokenizer: Tokenizer) -> None:
    for n in range(1, 8):
        batch = build_task(TASKS["if_equals"], tokenizer, n_train=n, n_heldout=1, seed=0).train
        for seed in range(20):
            flipped = batch.shuffled(seed).right != batch.right
            assert int(flipped.sum()) == 2 * (n // 2)


def test_the_control_swaps_both_rows_of_half_of_the_pairs(tokenizer: Tokenizer) -> None:
    batch = build_task(TASKS["if_equals"], tokenizer, n_train=400, n_heldout=1, seed=0).train
    control = batch.shuffled(seed=7)
    flipped = control.right != batch.right
    assert torch.equal(flipped[0::2], flipped[1::2])
    assert torch.equal(control.right[flipped], batch.wrong[flipped])
    assert torch.equal(control.wrong[flipped], batch.right[flipped])
    assert torch.equal(control.wrong[~flipped], batch.wrong[~flipped])
    assert torch.equal(control.tokens, batch.tokens)
    assert torch.equal(batch.shuffled(seed=7).right, control.right)
    assert not torch.equal(batch.shuffled(seed=8).right, control.right)


def _numbered(a: str, answer_a: str, b: str, answer_b: str) -> Task:
    """A task whose prompts start with a changing number."""

    def pair(rng: random.Random) -> Pair:
        start = f"x = {rng.randrange(1000)}\n"
        return Pair(start + a, answer_a, start + b, answer_b)

    return Task("planted", "a planted case", pair)


def test_a_planted_task_gets_the_tokens_read_off_by_hand(tokenizer: Tokenizer) -> None:
    task = _numbered("for x", " in items:\n", "while x", ":\n")
    batch = build_task(task, tokenizer, n_train=2, n_heldout=1, seed=0).train
    assert [tokenizer.decode([answer]) for answer in batch.right.tolist()] == [" in", ":\n", " in", ":\n"]
    assert [tokenizer.decode([answer]) for answer in batch.wrong.tolist()] == [":\n", " in", ":\n", " in"]
    assert tokenizer.decode(batch.tokens[0, : batch.length[0]].tolist()).endswith("\nfor x")


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (_numbered("for x", " in items", "while x", " in"), "the two answers are the same token"),
        (_numbered("for x", "", "while x", ":\n"), "adds none"),
        (_numbered("x = [1", "0]\n", "x = (1", ")\n"), "changes the prompt's tokens"),
        (_numbered("for x", " in", "for x", ":\n"), "the two prompts are the same"),
        (_numbered("x = 1\n" * 40 + "for x", " in", "while x", ":\n"), "longer than"),
        (Task("planted", "always the same", lambda rng: Pair("for x", " in", "while x", ":\n")), "drawn before"),
    ],
)
def test_a_task_that_breaks_a_rule_is_refused_by_name_and_reason(task: Task, reason: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=f"task planted: .*{reason}"):
        build_task(task, tokenizer, n_train=4, n_heldout=2, seed=0)


def test_a_vocabulary_that_cannot_tell_the_answers_apart_is_refused() -> None:
    class Bytes:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    with pytest.raises(InputError, match=r"task with_as: .*same token"):
        build_task(TASKS["with_as"], Bytes(), n_train=4, n_heldout=2, seed=0)


def test_sizes_and_names_are_checked(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"n_heldout: 0 .*at least 1"):
        build_task(TASKS["var_if"], tokenizer, n_train=4, n_heldout=0, seed=0)
    with pytest.raises(InputError, match=r"unknown name 'var_of'; allowed: single_double_quote, "):
        task_named("var_of")
    assert task_named("var_if") is TASKS["var_if"]
