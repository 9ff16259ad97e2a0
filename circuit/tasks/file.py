"""A task in a file: one pair per line, as JSON. docs/tasks.md says how to write one.

Everything that the table's tasks are held to (METHOD section 5) is checked here line by line, and every mistake is
told with its line.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from circuit.tasks.build import Row, TaskData, batch_of
from sparse_model import storage
from sparse_model.data.corpora import SPLITS
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.storage.text import parse_json, read_text

ENDING = ".jsonl"
TEXTS = ("prompt_a", "answer_a", "prompt_b", "answer_b")
MOST_MISTAKES = 20
"""Told at once; what is wrong in all lines is wrong in the first."""


@dataclass(frozen=True)
class FilePair:
    """One line: two prompts, each with the one token that is right after it and wrong after the other."""

    line: int
    prompt_a: str
    answer_a: str
    prompt_b: str
    answer_b: str
    split: str | None


@dataclass(frozen=True)
class TaskFile:
    """The pairs of a file; nothing is known yet of their tokens."""

    uri: str
    pairs: tuple[FilePair, ...]

    @property
    def name(self) -> str:
        """The task's name: the file's, less its ending."""
        return file_task_name(self.uri)


def file_task_name(uri: str) -> str:
    """Name of the task in the file at this URI; InputError where it cannot name a circuit's file."""
    name = uri.split("?")[0].rsplit("/", 1)[-1].removesuffix(ENDING)
    return storage.safe_name(name, f"{uri}: task")


def read_task_file(uri: str) -> TaskFile:
    """Read a task; InputError with a line `uri:line: …` for every line that is no pair."""
    lines = read_text(uri).split("\n")
    found = [_pair(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    pairs = [pair for pair in found if isinstance(pair, FilePair)]
    mistakes = [mistake for mistake in found if not isinstance(mistake, FilePair)]
    splits = {pair.split for pair in pairs}
    if None in splits and len(splits) > 1:
        missing = next(pair.line for pair in pairs if pair.split is None)
        mistakes.append((missing, "split is missing; allowed: on every line or on none"))
    _refuse(uri, mistakes)
    if not pairs:
        raise InputError(f"{uri}: no pair in it; allowed: one JSON object per line with {', '.join(TEXTS)}")
    return TaskFile(uri, tuple(pairs))


def build_file_task(task: TaskFile, tokenizer: Tokenizer, *, n_train: int, n_heldout: int, seed: int) -> TaskData:
    """Tokenise and split a task, at most so many pairs each; of fewer pairs without a split, half are held out.

    InputError with a line `uri:line: …` for every pair that breaks a rule with this tokenizer.
    """
    rows, mistakes = list[tuple[FilePair, tuple[Row, Row]]](), list[tuple[int, str]]()
    first_lines: dict[tuple[int, ...], int] = {}
    for pair in task.pairs:
        found, wrong = _rows(pair, tokenizer)
        before = {first_lines.setdefault(row.prompt, pair.line) for row in found} - {pair.line}
        wrong += [f"a prompt of line {line} is there again; allowed: each prompt once" for line in sorted(before)]
        mistakes += [(pair.line, message) for message in wrong]
        if not wrong:
            rows.append((pair, (found[0], found[1])))
    _refuse(task.uri, mistakes)
    train, heldout = _split(task, rows, n_train, n_heldout, seed)
    return TaskData(task.name, train=batch_of(train), heldout=batch_of(heldout))


def _pair(line: str, number: int) -> FilePair | tuple[int, str]:
    """What a line says, or its number and what is wrong with it."""
    try:
        content = parse_json(line, "line")
    except InputError as error:
        return number, str(error).removeprefix("line: ")
    if not isinstance(content, dict):
        return number, f"{type(content).__name__}; allowed: an object with {', '.join(TEXTS)}"
    wrong = next(_wrong_fields(content), None)
    return (number, wrong) if wrong else FilePair(line=number, **{"split": None, **content})


def _wrong_fields(content: dict[str, Any]) -> Iterator[str]:
    for key in content:
        if key not in (*TEXTS, "split"):
            yield f"unknown key {key!r}; allowed: {', '.join(TEXTS)} and split"
    for key in TEXTS:
        if not isinstance(content.get(key), str) or not content[key]:
            yield f"{key} is {content[key]!r}; allowed: a text" if key in content else f"{key} is missing"
        elif any("\ud800" <= letter <= "\udfff" for letter in content[key]):
            yield f"{key} is {content[key]!r}; allowed: whole characters, without half of a surrogate pair"
    if content.get("split", "train") not in SPLITS:
        yield f"split is {content['split']!r}; allowed: {' or '.join(SPLITS)}"


def _rows(pair: FilePair, tokenizer: Tokenizer) -> tuple[list[Row], list[str]]:
    """Rows of both prompts, those that can be made, and the rules that the pair breaks."""
    rows, wrong = [], []
    for side, prompt, answer in (("a", pair.prompt_a, pair.answer_a), ("b", pair.prompt_b, pair.answer_b)):
        tokens, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + answer)
        added = whole[len(tokens) :]
        if whole[: len(tokens)] != tokens or not added:
            wrong.append(f"answer_{side} {answer!r} changes its prompt's tokens; end the prompt where a token ends")
            continue
        if len(added) > 1:
            cut = " ".join(repr(tokenizer.token_text(token)) for token in added[:4])
            wrong.append(f"answer_{side} {answer!r} is {len(added)} tokens after its prompt ({cut}); allowed: one")
        rows.append(Row(tuple(tokens), added[0]))
    if len(rows) == 2 and rows[0].right == rows[1].right:
        wrong.append("both prompts have the same answer; allowed: answers that differ")
    if len(rows) == 2 and rows[0].prompt == rows[1].prompt:
        wrong.append("the two prompts are the same; allowed: prompts that differ in the cue")
    return rows, wrong


def _split(
    task: TaskFile, rows: list[tuple[FilePair, tuple[Row, Row]]], n_train: int, n_heldout: int, seed: int
) -> tuple[list[tuple[Row, Row]], list[tuple[Row, Row]]]:
    """Pairs to train on and to hold out: as the file says, or else drawn."""
    drawn = random.Random(seed).sample(rows, len(rows))
    if drawn[0][0].split is None:
        n_train = min(n_train, len(drawn) - min(n_heldout, len(drawn) // 2))
        train, heldout = drawn[:n_train], drawn[n_train:]
    else:
        train, heldout = ([row for row in drawn if row[0].split == split] for split in SPLITS)
    if not train or not heldout:
        raise InputError(f"{task.uri}: {len(train)} pairs to train on and {len(heldout)} held out; allowed: 1 or more")
    return [both for _, both in train[:n_train]], [both for _, both in heldout[:n_heldout]]


def _refuse(uri: str, mistakes: Iterable[tuple[int, str]]) -> None:
    lines = [f"{uri}:{line}: {message}" for line, message in sorted(mistakes)]
    if len(lines) > MOST_MISTAKES:
        lines[MOST_MISTAKES:] = [f"{uri}: and {len(lines) - MOST_MISTAKES} more mistakes"]
    if lines:
        raise InputError("\n".join(lines))
