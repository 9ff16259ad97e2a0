"""What a task is: a name, a sentence, and a way to draw pairs of prompts."""

import random
from collections.abc import Callable
from dataclasses import dataclass


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


@dataclass(frozen=True)
class Task:
    """One entry of the table. `pair` takes all its chance from the generator it is given."""

    name: str
    description: str
    pair: Callable[[random.Random], Pair]
