"""Tasks whose cue stands in an earlier line, or whose answer depends on lines before the last."""

import random

from circuit.tasks.context import Context
from circuit.tasks.pair import Pair
from sparse_model.data.idioms import blocks, expressions as ex, names, statements as st
from sparse_model.data.idioms.scope import Draw


def set_or_string(rng: random.Random) -> Pair:
    return _set_or_string(rng, None)


def set_or_string_fixedvarname(rng: random.Random) -> Pair:
    return _set_or_string(rng, "current")


def class_init(rng: random.Random) -> Pair:
    here = Context(rng, inside=False)
    here.start_unit()
    attributes = here.draw.distinct(names.ATTRIBUTES, here.draw.between(2, 3))
    a, b, *stored = here.draw.distinct(attributes, len(attributes))
    here.write(f"class {here.draw.pick(names.CLASSES)}:")
    here.write(f"{blocks.INDENT}def __init__(self, {', '.join(attributes)}):")
    here.pad = blocks.INDENT * 2
    for other in stored:
        here.write(f"self.{other} = {other}")
    return here.pair(f"self.{a} =", f" {a}", f"self.{b} =", f" {b}")


def indent_for(rng: random.Random) -> Pair:
    here = Context(rng, inside=True)
    if here.draw.chance(0.3):
        here.write(f"if {ex.condition(here.draw, here.scope)}:")
        here.pad += blocks.INDENT
    element, values = here.some("element"), here.some("list")
    next_line = st.show_value(here.draw, here.scope, here.pad)
    before = here.text + here.pad
    return Pair(
        f"{before}for {element} in {values}:\n", blocks.INDENT + next_line, f"{before}{element} = {values}\n", next_line
    )


def _set_or_string(rng: random.Random, fixed_name: str | None) -> Pair:
    """Drawn again until no other line grows a set or a string, which would speak for one of the answers."""
    while True:
        name = fixed_name or Draw(rng).pick(names.BY_KIND["set"])
        here = Context(rng, reserved=(name,))
        pair = _set_and_string(here, name)
        if not here.scope.known("set") and not here.scope.known("text"):
            return pair


def _set_and_string(here: Context, name: str) -> Pair:
    """The cue, up to two other statements, and a use of the name, in a loop or at the cue's own indentation."""
    before = here.text + here.pad
    here.text = ""
    here.write_statements(0, 2)
    if here.draw.chance(0.6):
        here.write(f"for {here.some('element')} in {here.some('list')}:")
        here.pad += blocks.INDENT
    after = f"{here.text}{here.pad}{name}"
    value = here.scope.some(here.draw, "element") or ex.number(here.draw)
    return Pair(
        f"{before}{name} = set()\n{after}", f".add({value})\n", f'{before}{name} = ""\n{after}', f" += {value}\n"
    )
