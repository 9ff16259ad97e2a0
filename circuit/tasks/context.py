"""The lines before a task's last line, written by the generator of the `idioms` corpus."""

import random
from collections.abc import Sequence

from circuit.tasks.pair import Pair
from sparse_model.data.idioms import Draw, Kind, Scope, blocks, names
from sparse_model.data.idioms.programs import parameters

MOST_LINES = 3
"""Statements before the cue; compound ones are several lines. Pruning costs grow with the longest prompt."""


class Context:
    """A scope in the middle of a program: `text` is what has been written, `pad` the indentation of the next line."""

    def __init__(self, rng: random.Random, *, inside: bool | None = None, reserved: Sequence[str] = ()) -> None:
        """`inside` a function, outside (False) or either (None); `reserved` names stay out of all lines."""
        self.draw = Draw(rng)
        self.scope = Scope(self.draw.chance(0.5) if inside is None else inside)
        self.scope.reserve(reserved)
        self.pad = blocks.INDENT if self.scope.in_function else ""
        self.text = self._header() if self.scope.in_function else ""
        self.write_statements(0, MOST_LINES)

    def write(self, line: str) -> None:
        """Adds one line at the present indentation."""
        self.text += f"{self.pad}{line}\n"

    def write_statements(self, fewest: int, most: int) -> None:
        """Adds a random number of statements as the corpus has them."""
        for _ in range(self.draw.between(fewest, most)):
            self.text += blocks.statement(self.draw, self.scope, self.pad)

    def start_unit(self) -> None:
        """Leaves the blank lines that come before a function or a class."""
        assert not self.scope.in_function
        self.text += "\n\n" if self.text else ""

    def some(self, kind: Kind) -> str:
        """A name of this type: a known one where there is any, else a new one."""
        return self.scope.some(self.draw, kind) or self.scope.new(self.draw, kind)

    def pair(self, line_a: str, completion_a: str, line_b: str, completion_b: str) -> Pair:
        """Both prompts: the text so far, then a last line begun; its completion lacks only the newline."""
        before = self.text + self.pad
        return Pair(before + line_a, completion_a + "\n", before + line_b, completion_b + "\n")

    def _header(self) -> str:
        name = self.draw.pick(names.BY_KIND["function"])
        return f"def {name}({parameters(self.draw, self.scope, self.draw.chance(0.5))}):\n"
