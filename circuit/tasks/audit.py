"""What gives a task's answers away, told from its tokenised pairs alone. docs/tasks.md states every measure.

Three *rules* guess an answer from something that is not to tell it: the last token, the number of tokens, the words and
numbers in the line of the cue. They learn from the training pairs and are asked on held-out pairs, where guessing is
right half of the time. The other measures are shares and counts. What lies beyond its bound is *told*, unless the
task's entry in the table says that it belongs to the task.
"""

from __future__ import annotations

import builtins
import keyword
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

from circuit.tasks.build import PairBatch, TaskData

RULE = 0.6
"""Share of held-out prompts that a rule may get right, and"""
AUDIT_DEVIATIONS = 3.0
"""how many standard deviations of guessing beyond one half it must be for that, where prompts are few."""

BOUNDS: Mapping[str, float] = {
    "last_token": RULE,
    "length": RULE,
    "words": RULE,
    "last_token_differs": 0.05,
    "lines_differ": 0.0,
    "unknown_names": 0.1,
    "cue_lines_in_both": 0.5,
    "prompts_in_both": 0.0,
}
"""Measures that are told where they are larger than this."""

SENTENCES: Mapping[str, str] = {
    "last_token": "the last token alone tells the answer of {:.0%} of held-out prompts",
    "length": "the number of tokens alone tells the answer of {:.0%} of held-out prompts",
    "words": "the words in the line of the cue tell the answer of {:.0%} of held-out prompts",
    "last_token_differs": "the last tokens of {:.0%} of the pairs differ",
    "lines_differ": "{:.0%} of the pairs differ in more than one line",
    "unknown_names": "the cue of {:.0%} of the prompts reads a name that stands nowhere before",
    "cue_lines_in_both": "the line of the cue of {:.0%} of held-out prompts is in the training pairs too",
    "prompts_in_both": "{:.0%} of held-out prompts are in the training pairs too",
}

_WORD = re.compile(r"\b(?![fr][\"'])[A-Za-z_]\w*")
_NUMBER = re.compile(r"\b\d+")
_STRING = re.compile(r"(?:\bf)?(?:\"[^\"]*(?:\"|$)|'[^']*(?:'|$))")
_BINDS = re.compile(
    r"for .*?(?: in\b|$)|(?!(?:if|elif|while|return|with|in|not|and|or)\b)(?:[\w, ]+? =(?!=) ?|[\w, ]*$)"
)
_NOT_READ = re.compile(r"\.\w+|\b\w+=(?!=)|\blambda [\w, ]*")
_KNOWN = {*keyword.kwlist, *dir(builtins), "self"}


class Decoder(Protocol):
    """The only part of a tokenizer that an audit needs."""

    def decode(self, tokens: list[int]) -> str: ...


@dataclass(frozen=True)
class Audit:
    """The measures of one task, in the order of docs/tasks.md; shares are of 1.

    `told` names the measures beyond their bounds that the task is not said to have by its nature; `belongs` says why
    it has those that it has.
    """

    task: str
    train_pairs: int
    heldout_pairs: int
    last_token: float
    length: float
    words: float
    last_token_differs: float
    lines_differ: float
    unknown_names: float
    unseen_words: float
    prompts: int
    cue_lines: int
    cue_lines_in_both: float
    prompts_in_both: float
    told: tuple[str, ...]
    belongs: Mapping[str, str]

    def said(self) -> list[str]:
        """Sentences on what was told, and on what belongs to the task."""
        leaks = [f"LEAK: {SENTENCES[name].format(getattr(self, name))}" for name in self.told]
        return [*leaks, *(f"{name} belongs to the task: {why}" for name, why in self.belongs.items())]


@dataclass(frozen=True)
class Prompt:
    """A prompt with the tokens of its two answers; `cue` is the first line in which it differs from its pair's other
    prompt, without its indentation, and `before` what stands above that line."""

    text: str
    tokens: tuple[int, ...]
    right: int
    wrong: int
    cue: str
    before: str


def audit(data: TaskData, decoder: Decoder, belongs: Mapping[str, str] | None = None) -> Audit:
    """The audit of a task; `belongs` says of some measures why they are part of the task."""
    train, heldout = prompts_of(data.train, decoder), prompts_of(data.heldout, decoder)
    belongs, every = dict(belongs or {}), [*train, *heldout]
    shares = {
        "last_token": guessed(train, heldout, lambda prompt: prompt.tokens[-1:]),
        "length": guessed(train, heldout, lambda prompt: [len(prompt.tokens)]),
        "words": guessed(train, heldout, lambda prompt: word_pieces(prompt.cue)),
        "last_token_differs": _share(a.tokens[-1] != b.tokens[-1] for a, b in _pairs(every)),
        "lines_differ": _share(_lines_differing(a.text, b.text) > 1 for a, b in _pairs(every)),
        "unknown_names": _share(not read_names(prompt.cue) <= words_of(prompt.before) for prompt in every),
        "unseen_words": _unseen(train, heldout),
        "cue_lines_in_both": _both((prompt.cue for prompt in train), (prompt.cue for prompt in heldout)),
        "prompts_in_both": _both((prompt.tokens for prompt in train), (prompt.tokens for prompt in heldout)),
    }
    bounds = {**BOUNDS, **dict.fromkeys(("last_token", "length", "words"), rule_bound(len(heldout)))}
    beyond = tuple(name for name, bound in bounds.items() if shares[name] > bound)
    return Audit(
        task=data.name,
        train_pairs=data.train.n_pairs,
        heldout_pairs=data.heldout.n_pairs,
        prompts=len({prompt.tokens for prompt in every}),
        cue_lines=len({prompt.cue for prompt in every}),
        told=tuple(name for name in beyond if name not in belongs),
        belongs=belongs,
        **shares,
    )


def rule_bound(prompts: int) -> float:
    """Share of so many held-out prompts that a rule may get right without being told."""
    return max(RULE, 0.5 + AUDIT_DEVIATIONS * 0.5 / math.sqrt(prompts))


def prompts_of(batch: PairBatch, decoder: Decoder) -> list[Prompt]:
    """The prompts of a batch, row by row."""
    rows = [tuple(row[:n].tolist()) for row, n in zip(batch.tokens, batch.length, strict=True)]
    texts = [decoder.decode(list(row)) for row in rows]
    found = []
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        before, cue = _cue(text, texts[i ^ 1])
        found.append(Prompt(text, row, int(batch.right[i]), int(batch.wrong[i]), cue, before))
    return found


def guessed(
    train: Sequence[Prompt], heldout: Sequence[Prompt], features: Callable[[Prompt], Iterable[Hashable]]
) -> float:
    """Share of held-out prompts that a rule over features gets right, a tie being half right.

    Of the two answers it takes the one for which, over the prompt's features, the sum of log((n + 1) / (m + 1)) is
    larger: n training prompts with the feature had this answer as the right one, m as the wrong one.
    """
    right, wrong = Counter[tuple[Hashable, int]](), Counter[tuple[Hashable, int]]()
    for prompt in train:
        for feature in set(features(prompt)):
            right[feature, prompt.right] += 1
            wrong[feature, prompt.wrong] += 1

    def score(prompt: Prompt, answer: int) -> float:
        keys = [(feature, answer) for feature in sorted(set(features(prompt)), key=str)]
        return sum(math.log((right[key] + 1) / (wrong[key] + 1)) for key in keys)

    leads = [score(prompt, prompt.right) - score(prompt, prompt.wrong) for prompt in heldout]
    return sum(0.5 if abs(lead) < 1e-9 else float(lead > 0) for lead in leads) / len(leads)


def words_of(text: str) -> set[str]:
    """Names and words of strings, without keywords and builtins."""
    return set(_WORD.findall(text)) - _KNOWN


def word_pieces(line: str) -> set[str]:
    """The words of a line, cut at underscores, and its numbers."""
    return {piece for word in words_of(line) for piece in word.split("_") if piece} | set(_NUMBER.findall(line))


def read_names(line: str) -> set[str]:
    """Names whose values a line reads: neither parameters, attributes, keywords of a call nor what the line binds."""
    bare = _STRING.sub("''", line)
    if re.match(r"(def|class)\b", bare):
        return set()
    if (binds := _BINDS.match(bare)) is not None:
        bare = bare[binds.end() :]
    return words_of(_NOT_READ.sub(" ", bare))


def _cue(text: str, other: str) -> tuple[str, str]:
    """What stands above the first line in which a text differs from another, and that line."""
    lines, others = text.split("\n"), other.split("\n")
    first = next((i for i, (a, b) in enumerate(zip_longest(lines, others)) if a != b), 0)
    return "\n".join(lines[:first]), lines[first].strip() if first < len(lines) else ""


def _lines_differing(a: str, b: str) -> int:
    return sum(x != y for x, y in zip_longest(a.split("\n"), b.split("\n")))


def _pairs(prompts: Sequence[Prompt]) -> Iterable[tuple[Prompt, Prompt]]:
    return zip(prompts[::2], prompts[1::2], strict=True)


def _unseen(train: Sequence[Prompt], heldout: Sequence[Prompt]) -> float:
    """Share of held-out prompts whose line of the cue has a word that no training prompt has."""
    seen = {word for prompt in train for word in words_of(prompt.text)}
    return _share(not words_of(prompt.cue) <= seen for prompt in heldout)


def _both(train: Iterable[Hashable], heldout: Iterable[Hashable]) -> float:
    """Share of what is held out that is in the training pairs as well."""
    seen = set(train)
    return _share(value in seen for value in heldout)


def _share(truths: Iterable[bool]) -> float:
    found = [bool(truth) for truth in truths]
    return sum(found) / len(found)
