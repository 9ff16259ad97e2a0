"""From a task to token tensors, with the rules of METHOD section 5 enforced.

Shapes: N pairs, R = 2N rows (row 2i is prompt A of pair i, row 2i + 1 its prompt B), T tokens of the longest prompt.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from circuit.tasks.pair import Draws, Pair, Task
from sparse_model.errors import InputError

if TYPE_CHECKING:  # a driver, and a trial's own process, name tasks and build none
    import torch

LONGEST_PROMPT = 64
"""Tokens. Longer pairs are drawn again: the longest prompt of a batch sets what all of them cost."""

LONGEST_HARDER = 96
"""Tokens of a prompt of a harder variant, on which no circuit is searched."""

_TRIES_PER_PAIR = 20


class Encoder(Protocol):
    """The only part of a tokenizer that tasks need."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class PairBatch:
    """Prompts padded on the right with token 0, and the two answers of each row; all int64.

    tokens (R, T), length (R,) tokens of each prompt, right (R,) and wrong (R,) token ids.
    """

    tokens: torch.Tensor
    length: torch.Tensor
    right: torch.Tensor
    wrong: torch.Tensor

    def __post_init__(self) -> None:
        rows, longest = self.tokens.shape
        assert rows % 2 == 0, rows
        assert self.length.shape == self.right.shape == self.wrong.shape == (rows,), (self.length.shape, rows)
        assert int(self.length.min()) >= 1, self.length
        assert int(self.length.max()) == longest, (self.length, longest)
        assert bool((self.right != self.wrong).all())

    @property
    def n_pairs(self) -> int:
        return len(self.length) // 2

    def first(self, n_pairs: int) -> PairBatch:
        """The first pairs, or all there are."""
        import torch

        return self.some(torch.arange(min(n_pairs, self.n_pairs)))

    def some(self, pairs: torch.Tensor) -> PairBatch:
        """The given pairs (n,)."""
        import torch

        rows = torch.stack([2 * pairs, 2 * pairs + 1], 1).flatten()
        length = self.length[rows]
        return PairBatch(self.tokens[rows, : int(length.max())], length, self.right[rows], self.wrong[rows])

    def shuffled(self, seed: int) -> PairBatch:
        """The control task (METHOD section 6): in half of the pairs, right and wrong swap in both rows.

        In exactly half, rounded down: with all or none of a few it would be the task itself, or its opposite.
        """
        import torch

        swapped = torch.zeros(self.n_pairs, dtype=torch.bool)
        swapped[torch.randperm(self.n_pairs, generator=torch.Generator().manual_seed(seed))[: self.n_pairs // 2]] = True
        flip = swapped.repeat_interleave(2)
        right, wrong = torch.where(flip, self.wrong, self.right), torch.where(flip, self.right, self.wrong)
        return replace(self, right=right, wrong=wrong)


@dataclass(frozen=True)
class TaskData:
    """One task's pairs; no prompt is in both batches, and none is there twice."""

    name: str
    train: PairBatch
    heldout: PairBatch


@dataclass(frozen=True)
class Row:
    """A prompt's tokens and the right answer's."""

    prompt: tuple[int, ...]
    right: int


def build_task(task: Task, tokenizer: Encoder, *, n_train: int, n_heldout: int, seed: int) -> TaskData:
    """Draws, checks and tokenises pairs; the same name, tokenizer, sizes and seed give the same data.

    Raises InputError for sizes below 1, and for a task whose pairs too often break a rule with this tokenizer, naming
    the rule that was broken most.
    """
    for field, size in (("n_train", n_train), ("n_heldout", n_heldout)):
        if size < 1:
            raise InputError(f"{field}: {size} pairs asked of task {task.name}; allowed: at least 1")
    rng, seen = _chance(task, seed), set[tuple[int, ...]]()

    def drawn(draws: Draws, count: int) -> PairBatch:
        return batch_of(_valid_pairs(replace(task, pair=draws), tokenizer, count, rng, seen, LONGEST_PROMPT))

    return TaskData(task.name, drawn(task.pair, n_train), drawn(task.heldout or task.pair, n_heldout))


def build_harder(task: Task, tokenizer: Encoder, *, n_pairs: int, seed: int) -> PairBatch | None:
    """Pairs of a task's harder variant; None where it has none, or too few pairs of it keep the rules with this
    tokenizer: in a small vocabulary its words may be many tokens."""
    if task.harder is None:
        return None
    harder = replace(task, pair=task.harder)
    try:
        return batch_of(_valid_pairs(harder, tokenizer, n_pairs, _chance(task, seed), set(), LONGEST_HARDER))
    except InputError:
        return None


def _chance(task: Task, seed: int) -> random.Random:
    return random.Random(zlib.crc32(task.name.encode()) + seed)


def _valid_pairs(
    task: Task, tokenizer: Encoder, count: int, rng: random.Random, seen: set[tuple[int, ...]], longest: int
) -> list[tuple[Row, Row]]:
    """So many pairs that keep the rules and have no prompt of `seen`, to which theirs are added."""
    pairs: list[tuple[Row, Row]] = []
    broken: Counter[str] = Counter()
    while len(pairs) < count:
        rows_or_reason = _tokenised(task.pair(rng), tokenizer, seen, longest)
        if isinstance(rows_or_reason, str):
            broken[rows_or_reason] += 1
            if broken.total() >= _TRIES_PER_PAIR * count:
                reason, times = broken.most_common(1)[0]
                raise InputError(
                    f"task {task.name}: only {len(pairs)} of {count} pairs keep the rules with this tokenizer; "
                    f"{times} of {broken.total() + len(pairs)} drawn: {reason}"
                )
            continue
        pairs.append(rows_or_reason)
        seen.update(row.prompt for row in rows_or_reason)
    return pairs


def _tokenised(pair: Pair, tokenizer: Encoder, seen: set[tuple[int, ...]], longest: int) -> tuple[Row, Row] | str:
    """Both rows, or the rule that the pair breaks."""
    a = _row(pair.prompt_a, pair.completion_a, tokenizer)
    b = _row(pair.prompt_b, pair.completion_b, tokenizer)
    if a is None or b is None:
        return "the completion changes the prompt's tokens, or adds none"
    if a.right == b.right:
        return "the two answers are the same token"
    if max(len(a.prompt), len(b.prompt)) > longest:
        return f"a prompt is longer than {longest} tokens"
    if a.prompt == b.prompt:
        return "the two prompts are the same"
    if a.prompt in seen or b.prompt in seen:
        return "a prompt was drawn before"
    return a, b


def _row(prompt: str, completion: str, tokenizer: Encoder) -> Row | None:
    """The prompt and the first token of its completion, tokenised together; None if that changes the prompt."""
    tokens = tuple(tokenizer.encode(prompt))
    whole = tokenizer.encode(prompt + completion)
    if not tokens or len(whole) <= len(tokens) or tuple(whole[: len(tokens)]) != tokens:
        return None
    return Row(tokens, whole[len(tokens)])


def batch_of(pairs: list[tuple[Row, Row]]) -> PairBatch:
    """Pairs as tensors."""
    import torch

    rows = [row for pair in pairs for row in pair]
    wrong = [other.right for a, b in pairs for other in (b, a)]
    longest = max(len(row.prompt) for row in rows)
    padded = [[*row.prompt, *[0] * (longest - len(row.prompt))] for row in rows]
    return PairBatch(
        tokens=torch.tensor(padded),
        length=torch.tensor([len(row.prompt) for row in rows]),
        right=torch.tensor([row.right for row in rows]),
        wrong=torch.tensor(wrong),
    )
