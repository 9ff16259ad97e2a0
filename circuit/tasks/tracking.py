"""Tasks whose cue stands in an earlier line, or whose answer depends on lines before the last."""

import random

from circuit.tasks.context import Context, PromptPart, pool
from circuit.tasks.pair import Pair
from sparse_model.data.idioms import blocks, expressions as ex, names
from sparse_model.data.idioms.scope import Draw

OTHERS = ("result", "output", "text", "answer")
"""Names that the corpus grows, for what stands between."""


def set_or_string(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: an unfamiliar name, and between cue and answer a set and a string of other names."""
    return _set_or_string(rng, part, None)


def set_or_string_fixedvarname(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: between cue and answer a set and a string of other names."""
    return _set_or_string(rng, part, "current")


def class_init(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: more and unfamiliar attributes."""
    here = Context(rng, part, inside=False)
    here.start_unit()
    count = here.draw.between(4, 5) if part == "harder" else here.draw.between(2, 3)
    attributes = here.several(names.ATTRIBUTES, count)
    a, b, *stored = here.draw.distinct(attributes, count)
    here.write(f"class {here.several(names.CLASSES, 1)[0].capitalize()}:")
    here.write(f"{blocks.INDENT}def __init__(self, {', '.join(attributes)}):")
    here.pad = blocks.INDENT * 2
    for other in stored:
        here.write(f"self.{other} = {other}")
    return here.pair(f"self.{a} =", f" {a}", f"self.{b} =", f" {b}")


def indent_for(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: deeper, unfamiliar names."""
    here = Context(rng, part, inside=True)
    if here.draw.chance(0.3):
        here.write(f"if {here.condition()}:")
        here.pad += blocks.INDENT
    values = here.known("list")
    here.nested(1)
    element = here.fresh("element")
    before, next_line = here.text + here.pad, f"{here.pad}print({element})\n"
    return Pair(
        f"{before}for {element} in {values}:\n", blocks.INDENT + next_line, f"{before}{element} = {values}\n", next_line
    )


def _set_or_string(rng: random.Random, part: PromptPart, fixed_name: str | None) -> Pair:
    """Drawn again until no other line grows a set or a string, which would speak for one of the answers."""
    while True:
        name = fixed_name or Draw(rng).pick(pool(names.BY_KIND["set"], part))
        here = Context(rng, part, reserved=(name,))
        pair = _set_and_string(here, name)
        if not here.scope.known("set") and not here.scope.known("text"):
            return pair


def _set_and_string(here: Context, name: str) -> Pair:
    """The cue, up to two other statements, and a use of the name, in a loop or at the cue's own indentation."""
    values = here.known_list()
    before = here.text + here.pad
    here.text = ""
    if here.part == "harder":
        for start, other in zip(here.shuffled("set()", '""'), here.draw.distinct(OTHERS, 2), strict=True):
            here.write(f"{other} = {start}")
    here.write_statements(0, 2)
    if here.draw.chance(0.6):
        here.write(f"for {here.element()} in {values}:")
        here.pad += blocks.INDENT
    after = f"{here.text}{here.pad}{name}"
    value = here.scope.some(here.draw, "element") or ex.number(here.draw)
    return Pair(
        f"{before}{name} = set()\n{after}", f".add({value})\n", f'{before}{name} = ""\n{after}', f" += {value}\n"
    )
