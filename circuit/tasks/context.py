"""The lines before a task's last line, written by the generator of the `idioms` corpus, and the names in its cue.

Names and words come in three parts, none of which has a word of another in the line of the cue: those of training
pairs, those of held-out pairs (`names.HELDOUT_NAMES`, which no other line of a prompt has either), and words that
the corpus writes in strings alone, for the harder variants.
"""

import builtins
import keyword
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Literal

from circuit.tasks.pair import Pair
from sparse_model.data.idioms import Draw, Kind, Scope, blocks, expressions as ex, names
from sparse_model.data.idioms.programs import parameters

PromptPart = Literal["train", "heldout", "harder"]
PROMPT_PARTS: tuple[PromptPart, ...] = ("train", "heldout", "harder")

FEWEST_LINES, MOST_LINES = 1, 3
"""Statements before the cue; compound ones are several lines. Without any, the length of a prompt would tell much of
its last line. Pruning costs grow with the longest prompt."""

_TABLES = (*names.BY_KIND.values(), *names.RELATED, names.COUNTERS, names.CLASSES, names.ATTRIBUTES, names.WORDS)
_TAKEN = {*keyword.kwlist, *dir(builtins), *names.SPARE}.union(*_TABLES)
UNFAMILIAR = tuple(word for word in dict.fromkeys(names.RARE_WORDS) if word not in _TAKEN)
"""Words that the corpus writes now and then, and never as names."""

_WORD = re.compile(r"[A-Za-z]+")
_VALUES: Mapping[Kind, Callable[[Draw], str]] = {
    "int": ex.number,
    "bool": lambda draw: draw.pick(("True", "False")),
    "list": ex.flat_list,
}


@cache
def pool(table: tuple[str, ...], part: PromptPart) -> tuple[str, ...]:
    """What of a table of names or words is for the line of the cue; unfamiliar words for the harder variant."""
    if part == "harder":
        return UNFAMILIAR
    return tuple(word for word in table if (word in names.HELDOUT_NAMES) == (part == "heldout"))


class Context:
    """A scope in the middle of a program: `text` is what has been written, `pad` the indentation of the next line."""

    def __init__(
        self, rng: random.Random, part: PromptPart, *, inside: bool | None = None, reserved: Sequence[str] = ()
    ) -> None:
        """`inside` a function, outside (False) or either (None); `reserved` names stay out of all lines."""
        self.draw, self.part = Draw(rng), part
        self._own: set[str] = set()
        self.scope = Scope(self.draw.chance(0.5) if inside is None else inside)
        self.scope.reserve(reserved)
        self.pad = blocks.INDENT if self.scope.in_function else ""
        self.text = self._clean(self._header) if self.scope.in_function else ""
        self.write_statements(FEWEST_LINES, MOST_LINES)

    def write(self, line: str) -> None:
        """Adds one line at the present indentation."""
        self.text += f"{self.pad}{line}\n"

    def write_statements(self, fewest: int, most: int) -> None:
        """Adds a random number of statements as the corpus has them."""
        for _ in range(self.draw.between(fewest, most)):
            self.text += self._clean(lambda: blocks.statement(self.draw, self.scope, self.pad))

    def start_unit(self) -> None:
        """Leaves the blank lines that come before a function or a class."""
        assert not self.scope.in_function
        self.text += "\n\n"

    def open_block(self) -> None:
        """Begins a loop or a condition; what follows stands in it."""
        if self.draw.chance(0.5):
            self.write(f"for {self.draw.pick(pool(names.COUNTERS, 'train'))} in range({ex.number(self.draw)}):")
        else:
            self.write(f"if {self.condition()}:")
        self.pad += blocks.INDENT

    def nested(self, levels: int) -> None:
        """In the harder variant, that many loops or conditions more around what follows."""
        for _ in range(levels if self.part == "harder" else 0):
            self.open_block()

    def condition(self) -> str:
        """A test of something in scope."""
        return self._clean(lambda: ex.condition(self.draw, self.scope))

    def string(self) -> str:
        """A phrase in either kind of quotes, for other lines than that of the cue."""
        return self._clean(lambda: ex.string(self.draw))

    def phrase(self, fewest: int, most: int) -> str:
        """Words for the line of the cue."""
        words = pool(names.WORDS, self.part)
        return " ".join(self.draw.pick(words) for _ in range(self.draw.between(fewest, most)))

    def known(self, kind: Kind) -> str:
        """A name of this type for the line of the cue that stands in the text already: defined now where there is
        none, with another statement behind it or not."""
        table = pool(names.BY_KIND[kind], self.part)
        there = [name for name in self.scope.known(kind) if self.part == "train" or name in table]
        if there:
            return self.draw.pick(there)
        values = self.known_list() if kind == "element" else None
        name = self.fresh(kind)
        value = self._clean(lambda: f"{values}[{ex.number(self.draw)}]" if values else _VALUES[kind](self.draw))
        self.write(f"{name} = {value}")
        self.write_statements(0, 1)
        return name

    def known_list(self) -> str:
        """A list's name that stands in the text already, for lines in which it is no part of the cue."""
        if not self.scope.known("list"):
            self.text += self._clean(self._list)
        return self.draw.pick(self.scope.known("list"))

    def element(self) -> str:
        """A name for what a loop runs over, for lines other than that of the cue."""
        return self._clean(lambda: self.scope.some(self.draw, "element") or self.scope.new(self.draw, "element"))

    def fresh(self, kind: Kind) -> str:
        """A new name of this type for the line of the cue."""
        free = [name for name in pool(names.BY_KIND[kind], self.part) if self.scope.is_free(name)]
        name = self.draw.pick(free or [name for name in names.SPARE if self.scope.is_free(name)])
        self.scope.bind(kind, name)
        self._own.add(name)
        return name

    def several(self, table: tuple[str, ...], count: int) -> list[str]:
        """Different words of a table for the line of the cue; names of a scope are `fresh` or `known`."""
        found = self.draw.distinct(pool(table, self.part), count)
        self._own.update(found)
        return found

    def related(self) -> tuple[str, str]:
        """Two numbers that belong together, defined now where they are not known: what the cue swaps."""
        if self.part == "harder":
            first, second = self.fresh("int"), self.fresh("int")
            known = False
        else:
            groups = [group for group in names.RELATED if set(pool(group, self.part)) == set(group)]
            while True:
                first, second = self.draw.distinct(self.draw.pick(groups), 2)
                known = set(self.scope.known("int")) >= {first, second}
                if known or self.scope.claim("int", (first, second)):
                    break
            self._own.update((first, second))
        if not known:
            self.write(f"{first}, {second} = {ex.numbers(self.draw, 2)}")
            self.write_statements(0, 1)
        return first, second

    def shuffled(self, *lines: str) -> list[str]:
        """The same in any order."""
        return self.draw.distinct(lines, len(lines))

    def pair(self, line_a: str, completion_a: str, line_b: str, completion_b: str) -> Pair:
        """Both prompts: the text so far, then a last line begun; its completion lacks only the newline."""
        before = self.text + self.pad
        return Pair(before + line_a, completion_a + "\n", before + line_b, completion_b + "\n")

    def _clean(self, write: Callable[[], str]) -> str:
        """What `write` gives, and the scope as it leaves it: drawn again until no word is one of `names.HELDOUT_NAMES`,
        but for those that are in the line of the cue as well."""
        before = self.scope
        while True:
            self.scope = before.copy()
            text = write()
            if not names.HELDOUT_NAMES.intersection(_WORD.findall(text)) - self._own:
                return text

    def _list(self) -> str:
        return f"{self.pad}{self.scope.new(self.draw, 'list')} = {ex.flat_list(self.draw)}\n"

    def _header(self) -> str:
        name = self.draw.pick(names.BY_KIND["function"])
        return f"def {name}({parameters(self.draw, self.scope, self.draw.chance(0.5))}):\n"
