"""Simple statements: one or two lines at one indentation, each ending in a newline.

Every function takes the draw, the scope and `pad`, the spaces before each line, and binds the names it introduces.
Names are bound after the expression that defines them is written: no statement reads what it is about to define.
"""

from collections.abc import Callable

from sparse_model.data.idioms import expressions as ex, names
from sparse_model.data.idioms.names import weighted
from sparse_model.data.idioms.scope import Draw, Scope

Statement = Callable[[Draw, Scope, str], str]


def assign_integer(draw: Draw, scope: Scope, pad: str) -> str:
    """`x = 3`, for a new name or one that is known."""
    value = ex.arithmetic(draw, scope)
    name = scope.some(draw, "int") if draw.chance(0.4) else None
    return f"{pad}{name or scope.new(draw, 'int')} = {value}\n"


def augment_integer(draw: Draw, scope: Scope, pad: str) -> str:
    """`x += 1`, for a known name."""
    name = scope.some(draw, "int")
    if name is None:
        return assign_integer(draw, scope, pad)
    return f"{pad}{name} {draw.pick(('+=', '+=', '-='))} {ex.number(draw)}\n"


def assign_flag(draw: Draw, scope: Scope, pad: str) -> str:
    """`x = True`."""
    name = scope.some(draw, "bool") if draw.chance(0.4) else None
    return f"{pad}{name or scope.new(draw, 'bool')} = {draw.pick(('True', 'False'))}\n"


def assign_string(draw: Draw, scope: Scope, pad: str) -> str:
    """`x = "hello"`, plain or formatted."""
    value = ex.formatted(draw, scope) if draw.chance(0.3) else ex.string(draw)
    return f"{pad}{scope.new(draw, 'str')} = {value}\n"


def assign_list(draw: Draw, scope: Scope, pad: str) -> str:
    """`x = [1, 2]`, `x = [[1, 2], [3, 4]]` or `x = ["a", "b"]`."""
    value = draw.pick((ex.flat_list, ex.nested_list, ex.word_list))(draw)
    return f"{pad}{scope.new(draw, 'list')} = {value}\n"


def assign_dict(draw: Draw, scope: Scope, pad: str) -> str:
    """`x = {"a": 1}`."""
    return f"{pad}{scope.new(draw, 'dict')} = {ex.word_dict(draw)}\n"


def assign_two(draw: Draw, scope: Scope, pad: str) -> str:
    """`a, b = 1, 2`: what a swap looks like until its right-hand side."""
    values = ex.numbers(draw, 2)
    return f"{pad}{scope.new(draw, 'int')}, {scope.new(draw, 'int')} = {values}\n"


def swap(draw: Draw, scope: Scope, pad: str) -> str:
    """`a, b = b, a`, its names defined just before where the scope lacks one."""
    first, second, definition = related(draw, scope, pad)
    return f"{definition}{pad}{first}, {second} = {second}, {first}\n"


def related(draw: Draw, scope: Scope, pad: str) -> tuple[str, str, str]:
    """Two numbers that belong together, and the line that defines them, empty where both were known.

    Drawn until neither name is taken for another type; `names.SPARE` says why that ends.
    """
    while True:
        first, second = draw.distinct(draw.pick(names.RELATED), 2)
        known = set(scope.known("int")) >= {first, second}
        if known or scope.claim("int", (first, second)):
            return first, second, "" if known else f"{pad}{first}, {second} = {ex.numbers(draw, 2)}\n"


def ternary(draw: Draw, scope: Scope, pad: str) -> str:
    """`y = a if x else b`."""
    if not scope.known("bool"):
        return assign_flag(draw, scope, pad)
    test = ex.condition(draw, scope)
    value, other = ex.integer(draw, scope), ex.integer(draw, scope)
    return f"{pad}{scope.new(draw, 'int')} = {value} if {test} else {other}\n"


def assign_lambda(draw: Draw, scope: Scope, pad: str) -> str:
    """`f = lambda x: x + 1`."""
    argument = draw.pick(names.BY_KIND["function"])
    body = f"{argument} {draw.pick('+-*')} {ex.number(draw)}"
    return f"{pad}{scope.new(draw, 'function')} = lambda {argument}: {body}\n"


def show_string(draw: Draw, scope: Scope, pad: str) -> str:
    """`print("hello")`."""
    return f"{pad}print({ex.string(draw)})\n"


def show_formatted(draw: Draw, scope: Scope, pad: str) -> str:
    """`print(f"total {x}")`."""
    return f"{pad}print({ex.formatted(draw, scope)})\n"


def show_value(draw: Draw, scope: Scope, pad: str) -> str:
    """`print(x)`."""
    name = scope.some(draw, draw.pick(("int", "str", "list", "set", "text"))) or ex.integer(draw, scope)
    return f"{pad}print({name})\n"


def call(draw: Draw, scope: Scope, pad: str) -> str:
    """A call of a known function, by position or by keyword."""
    name = scope.some(draw, "function")
    if name is None:
        return show_value(draw, scope, pad)
    argument = f"{draw.pick(names.ATTRIBUTES)}={ex.number(draw)}" if draw.chance(0.3) else ex.integer(draw, scope)
    return f"{pad}{name}({argument})\n"


def append(draw: Draw, scope: Scope, pad: str) -> str:
    """`items.append(x)`."""
    name = scope.some(draw, "list")
    if name is None:
        return assign_list(draw, scope, pad)
    return f"{pad}{name}.append({ex.integer(draw, scope)})\n"


def take_element(draw: Draw, scope: Scope, pad: str) -> str:
    """`item = values[0]`, for a new name or one that is known."""
    values = scope.some(draw, "list")
    if values is None:
        return assign_list(draw, scope, pad)
    name = scope.some(draw, "element") if draw.chance(0.4) else None
    return f"{pad}{name or scope.new(draw, 'element')} = {values}[{ex.number(draw)}]\n"


def set_key(draw: Draw, scope: Scope, pad: str) -> str:
    """`data["a"] = 1`."""
    name = scope.some(draw, "dict")
    if name is None:
        return assign_dict(draw, scope, pad)
    quote = draw.pick(ex.QUOTES)
    return f"{pad}{name}[{quote}{draw.pick(names.WORDS)}{quote}] = {ex.integer(draw, scope)}\n"


def open_file(draw: Draw, scope: Scope, pad: str) -> str:
    """`f = open("a.txt", "r")`."""
    value = ex.file_call(draw)
    name = scope.some(draw, "file") or scope.new(draw, "file")
    return f"{pad}{name} = {value}\n"


def start_growing(draw: Draw, scope: Scope, pad: str) -> str:
    """`x = set()` or `x = ""`."""
    if draw.chance(0.5):
        return f"{pad}{scope.new(draw, 'set')} = set()\n"
    return f'{pad}{scope.new(draw, "text")} = ""\n'


def start_and_grow(draw: Draw, scope: Scope, pad: str) -> str:
    """Both at once: `x = set()` and then `x.add(1)`, or `x = ""` and then `x += "a"`."""
    return start_growing(draw, scope, pad) + grow(draw, scope, pad)


def grow(draw: Draw, scope: Scope, pad: str) -> str:
    """`x.add(1)` or `x += "a"` for a name that was begun as a set or an empty string: never anything else."""
    growing = [("set", name) for name in scope.known("set")] + [("text", name) for name in scope.known("text")]
    if not growing:
        return start_growing(draw, scope, pad)
    kind, name = draw.pick(growing)
    if kind == "set":
        return f"{pad}{name}.add({scope.some(draw, 'element') or ex.integer(draw, scope)})\n"
    return f"{pad}{name} += {scope.some(draw, 'element') or ex.string(draw)}\n"


def comment(draw: Draw, scope: Scope, pad: str) -> str:
    """`# load the data`, above another statement."""
    return f"{pad}# {ex.phrase(draw)}\n{show_value(draw, scope, pad)}"


_SIMPLE: tuple[Statement, ...] = weighted(
    [
        (5, assign_integer),
        (2, augment_integer),
        (2, assign_flag),
        (3, assign_string),
        (9, assign_list),
        (5, assign_dict),
        (3, assign_two),
        (14, swap),
        (16, ternary),
        (4, assign_lambda),
        (6, show_string),
        (9, show_formatted),
        (3, show_value),
        (3, call),
        (2, append),
        (2, set_key),
        (3, take_element),
        (9, open_file),
        (6, start_growing),
        (8, start_and_grow),
        (16, grow),
        (1, comment),
    ]
)


def simple(draw: Draw, scope: Scope, pad: str) -> str:
    """Any statement of this file, each as often as the corpus needs it."""
    return draw.pick(_SIMPLE)(draw, scope, pad)
