"""A program: functions, classes and plain lines, each in a scope of its own, with blank lines between."""

import random
from collections.abc import Callable, Iterator

from sparse_model.data.idioms import blocks, expressions as ex, names
from sparse_model.data.idioms.names import Kind, weighted
from sparse_model.data.idioms.scope import Draw, Scope

IDIOMS_VERSION = 2
"""Of what is written, raised with every change of it; part of the name of every dataset made from it."""

_PAD = blocks.INDENT
_POSITIONAL: tuple[Kind, ...] = weighted([(5, "int"), (2, "str"), (2, "bool"), (3, "list")])
_KEYWORD: tuple[Kind, ...] = weighted([(7, "int"), (1, "str"), (1, "bool")])


def programs(seed: int | str) -> Iterator[str]:
    """Endless programs of about 0.3 to 1.5 kB; each compiles. The same seed gives the same bytes everywhere."""
    draw = Draw(random.Random(seed))
    while True:
        yield program(draw)


def program(draw: Draw) -> str:
    """Two to four units; lines outside functions see the functions written before them."""
    module = Scope()
    units = [draw.pick(_UNITS)(draw, module) for _ in range(draw.between(2, 4))]
    return "\n\n".join(units)


def parameters(draw: Draw, scope: Scope, keywords: bool) -> str:
    """`a, b, c` or `a=1, b=2, c=3`: either all have defaults or none has."""
    count = draw.pick((1, 2, 2, 3, 3, 4))
    if not keywords:
        return ", ".join([scope.new(draw, draw.pick(_POSITIONAL)) for _ in range(count)])
    kinds = [draw.pick(_KEYWORD) for _ in range(count)]
    return ", ".join([f"{scope.new(draw, kind)}={_default(draw, kind)}" for kind in kinds])


def function(draw: Draw, module: Scope) -> str:
    """A function of two to five statements, most with a `return`."""
    scope = Scope(in_function=True)
    form = draw.between(0, 9)
    inside = "" if form < 3 else parameters(draw, scope, keywords=form < 7)
    text = f"def {module.new(draw, 'function')}({inside}):\n"
    for _ in range(draw.between(2, 5)):
        text += blocks.statement(draw, scope, _PAD)
    return text + (_ending(draw, scope) if draw.chance(0.8) else "")


def class_definition(draw: Draw, module: Scope) -> str:
    """A class that stores its arguments, sometimes with a method."""
    attributes = draw.distinct(names.ATTRIBUTES, draw.between(2, 3))
    name = draw.pick(names.CLASSES)
    text = f"class {name}:\n{_PAD}def __init__(self, {', '.join(attributes)}):\n"
    for attribute in draw.distinct(attributes, len(attributes)):
        text += f"{_PAD}{_PAD}self.{attribute} = {attribute}\n"
    if draw.chance(0.4):
        text += f"\n{_PAD}def {draw.pick(names.BY_KIND['function'])}(self):\n"
        text += f"{_PAD}{_PAD}return self.{draw.pick(attributes)}\n"
    return text


def script(draw: Draw, module: Scope) -> str:
    """Three to seven statements outside any function."""
    scope = Scope()
    for name in module.known("function"):
        scope.bind("function", name)
    return "".join([blocks.statement(draw, scope, "") for _ in range(draw.between(3, 7))])


def _default(draw: Draw, kind: Kind) -> str:
    if kind == "int":
        return ex.number(draw)
    return ex.string(draw) if kind == "str" else draw.pick(("True", "False"))


def _ending(draw: Draw, scope: Scope) -> str:
    form = draw.between(0, 5)
    if form <= 2:
        return f"{_PAD}return True\n" if draw.chance(0.8) else f"{_PAD}return False\n"
    if form == 3:
        return f"{_PAD}return {draw.pick((ex.flat_list, ex.nested_list, ex.word_list, ex.word_dict))(draw)}\n"
    if form == 4:
        return f"{blocks.guard(draw, scope, _PAD)}{_PAD}return False\n"
    name = scope.some(draw, draw.pick(("int", "str", "set", "text"))) or ex.integer(draw, scope)
    return f"{_PAD}return {name}\n"


_UNITS: tuple[Callable[[Draw, Scope], str], ...] = weighted([(5, function), (3, class_definition), (4, script)])
