"""What a task is: a name, a sentence, and a way to draw pairs of prompts."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pair:
    """Two prompts that differ in the task's cue only, each with the rest of its last line.

    A completion may be longer than one token: the answer is its first token, as tokenised after its prompt. The answer
    of one prompt is the wrong answer of the other.
    """

    prompt_a: str
    completion_a: str
    prompt_b: str
    completion_b: str


Draws = Callable[[random.Random], Pair]
"""Draws one pair; takes all its chance from the generator it is given."""


@dataclass(frozen=True)
class Task:
    """One entry of the table. `pair` draws what a circuit is searched on.

    `heldout` draws held-out pairs, with names and words that no pair of `pair` has, where the task leaves them free; by
    default the same pairs. `harder` draws a variant that asks the same of longer, deeper or unfamiliar lines, if there
    is one. `belongs` says of measures of the audit (`circuit.tasks.audit`) why the task has them by its nature, and
    `remark` what else there is to know.
    """

    name: str
    description: str
    pair: Draws
    heldout: Draws | None = None
    harder: Draws | None = None
    belongs: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""
