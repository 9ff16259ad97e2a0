"""Compound statements. Bodies are indented by four spaces; every function returns whole lines, as in `statements`."""

from sparse_model.data.idioms import expressions as ex, names, statements as st
from sparse_model.data.idioms.names import Kind, weighted
from sparse_model.data.idioms.scope import Draw, Scope

INDENT = "    "
_DEEPEST = len(INDENT) * 3
_LOOPED: tuple[Kind, ...] = ("bool", "int", "list", "element")


def body(draw: Draw, scope: Scope, pad: str) -> str:
    """One or two statements, one level deeper than `pad`."""
    inner = pad + INDENT
    first = statement(draw, scope, inner)
    return first + st.simple(draw, scope, inner) if draw.chance(0.35) else first


def for_each(draw: Draw, scope: Scope, pad: str) -> str:
    """`for x in items:`"""
    before, values = _some_list(draw, scope, pad)
    return f"{before}{pad}for {_element(draw, scope)} in {values}:\n{body(draw, scope, pad)}"


def for_range(draw: Draw, scope: Scope, pad: str) -> str:
    """`for i in range(3):`"""
    stop = ex.integer(draw, scope)
    return f"{pad}for {draw.pick(names.COUNTERS)} in range({stop}):\n{body(draw, scope, pad)}"


def for_enumerate(draw: Draw, scope: Scope, pad: str) -> str:
    """`for i, x in enumerate(items):`"""
    before, values = _some_list(draw, scope, pad)
    header = f"for {draw.pick(names.COUNTERS)}, {_element(draw, scope)} in enumerate({values}):"
    return f"{before}{pad}{header}\n{body(draw, scope, pad)}"


def while_name(draw: Draw, scope: Scope, pad: str) -> str:
    """`while x:` over a flag, a number, a list or an element; one of them is sometimes compared."""
    kind = draw.pick(_LOOPED)
    before = "" if scope.known(kind) or scope.known("bool") else st.assign_flag(draw, scope, pad)
    name = scope.some(draw, kind) or draw.pick(scope.known("bool"))
    test = f"{name} < {ex.number(draw)}" if kind == "int" and draw.chance(0.2) else name
    return f"{before}{pad}while {test}:\n{body(draw, scope, pad)}"


def while_true(draw: Draw, scope: Scope, pad: str) -> str:
    """`while True:` with a way out at its end."""
    inner = pad + INDENT
    before = "" if scope.known("bool") else st.assign_flag(draw, scope, pad)
    way_out = f"{inner}if {ex.condition(draw, scope)}:\n{inner}{INDENT}break\n"
    return f"{before}{pad}while True:\n{st.simple(draw, scope, inner)}{way_out}"


def if_chain(draw: Draw, scope: Scope, pad: str) -> str:
    """`if …:`, often with `elif …:` or `else:` or both."""
    text = "" if scope.known("bool") else st.assign_flag(draw, scope, pad)
    text += f"{pad}if {ex.condition(draw, scope)}:\n{body(draw, scope, pad)}"
    if draw.chance(0.5):
        text += f"{pad}elif {ex.condition(draw, scope)}:\n{st.simple(draw, scope, pad + INDENT)}"
    if draw.chance(0.5):
        text += f"{pad}else:\n{st.simple(draw, scope, pad + INDENT)}"
    return text


def guard(draw: Draw, scope: Scope, pad: str) -> str:
    """`if …:` with a `return` inside; outside functions an ordinary `if`."""
    if not scope.in_function or not scope.known("bool"):
        return if_chain(draw, scope, pad)
    value = draw.pick(("True", "True", "True", "False"))
    return f"{pad}if {ex.condition(draw, scope)}:\n{pad}{INDENT}return {value}\n"


def with_file(draw: Draw, scope: Scope, pad: str) -> str:
    """`with open("a.txt", "r") as f:`"""
    value = ex.file_call(draw)
    name = scope.some(draw, "file") or scope.new(draw, "file")
    inner = pad + INDENT
    if value[-3] == "w":
        use = f"{name}.write({scope.some(draw, 'str') or ex.string(draw)})"
    else:
        use = f"{scope.new(draw, 'str')} = {name}.read()"
    return f"{pad}with {value} as {name}:\n{inner}{use}\n"


def grow_in_loop(draw: Draw, scope: Scope, pad: str) -> str:
    """A set or a string begun, other lines, then a loop that grows it."""
    text = st.start_growing(draw, scope, pad)
    for _ in range(draw.between(0, 2)):
        text += st.simple(draw, scope, pad)
    before, values = _some_list(draw, scope, pad)
    text += f"{before}{pad}for {_element(draw, scope)} in {values}:\n"
    if draw.chance(0.3):
        text += st.simple(draw, scope, pad + INDENT)
    return text + st.grow(draw, scope, pad + INDENT)


_BLOCKS: tuple[st.Statement, ...] = weighted(
    [
        (3, for_each),
        (10, for_range),
        (10, for_enumerate),
        (7, while_name),
        (6, while_true),
        (12, if_chain),
        (6, guard),
        (12, with_file),
        (13, grow_in_loop),
    ]
)


def block(draw: Draw, scope: Scope, pad: str) -> str:
    """Any compound statement of this file."""
    return draw.pick(_BLOCKS)(draw, scope, pad)


def statement(draw: Draw, scope: Scope, pad: str) -> str:
    """A simple or, where the indentation still allows it, a compound statement."""
    if len(pad) < _DEEPEST and draw.chance(0.3):
        return block(draw, scope, pad)
    return st.simple(draw, scope, pad)


def _element(draw: Draw, scope: Scope) -> str:
    return scope.some(draw, "element") or scope.new(draw, "element")


def _some_list(draw: Draw, scope: Scope, pad: str) -> tuple[str, str]:
    """The line that defines a list, empty where one is known, and the list's name."""
    before = "" if scope.known("list") else st.assign_list(draw, scope, pad)
    return before, draw.pick(scope.known("list"))
