"""Tasks whose cue stands in the last line itself. Each function draws one pair; the table names and describes them."""

import random

from circuit.tasks.context import Context
from circuit.tasks.pair import Pair
from sparse_model.data.idioms import expressions as ex, names, statements as st

QUOTE = '"'


def single_double_quote(rng: random.Random) -> Pair:
    here = Context(rng)
    words = ex.phrase(here.draw)
    return here.pair(f'print("{words}', '")', f"print('{words}", "')")


def final_kwarg(rng: random.Random) -> Pair:
    here = Context(rng, inside=False)
    here.start_unit()
    name = here.draw.pick(names.BY_KIND["function"])
    *first, last = here.draw.distinct(names.BY_KIND["int"], here.draw.between(2, 4))
    with_defaults = ", ".join([*(f"{other}={ex.number(here.draw)}" for other in first), last])
    without = ", ".join([*first, last])
    return here.pair(f"def {name}({with_defaults}", f"={ex.number(here.draw)}):", f"def {name}({without}", "):")


def with_as(rng: random.Random) -> Pair:
    here = Context(rng)
    mode = here.draw.pick("rw")
    call = f'open({ex.file_name(here.draw, None, QUOTE)}, "{mode}'
    handle = here.draw.pick(names.BY_KIND["file"])
    return here.pair(f"with {call}", f'") as {handle}:', f"{handle} = {call}", '")')


def bracket_brace(rng: random.Random) -> Pair:
    here = Context(rng)
    start = f"{here.scope.new(here.draw, 'dict')} = "
    word, other = here.draw.distinct(names.WORDS, 2)
    return here.pair(f'{start}{{"{word}', f'": {ex.number(here.draw)}}}', f'{start}["{word}', f'", "{other}"]')


def with_open(rng: random.Random) -> Pair:
    here = Context(rng)
    handle = here.draw.pick(names.BY_KIND["file"])
    start, end = ("with ", f" as {handle}:") if here.draw.chance(0.5) else (f"{handle} = ", "")
    rest = here.draw.pick(names.PATH_SUFFIXES)
    written, read = (f'{start}open({side}{rest}, "' for side in (names.WRITE_SIDE, names.READ_SIDE))
    return here.pair(written, f'w"){end}', read, f'r"){end}')


def bracket_counting(rng: random.Random) -> Pair:
    here = Context(rng)
    start = f"{here.scope.new(here.draw, 'list')} = "
    columns = here.draw.between(1, 3)
    rows = [ex.numbers(here.draw, columns) for _ in range(here.draw.between(1, 2))]
    return here.pair(f"{start}[[{'], ['.join(rows)}", "]]", f"{start}[{', '.join(rows)}", "]")


def for_while(rng: random.Random) -> Pair:
    here = Context(rng)
    values = here.some("list")
    name = here.some("element")
    return here.pair(f"for {name}", f" in {values}:", f"while {name}", ":")


def else_elif(rng: random.Random) -> Pair:
    here = Context(rng)
    name = here.some("int")
    here.write(f"if {ex.condition(here.draw, here.scope)}:")
    here.write(f"    print({ex.string(here.draw)})")
    return here.pair("else", ":", "elif", f" {name} == {ex.number(here.draw)}:")


def fstring_brace(rng: random.Random) -> Pair:
    here = Context(rng)
    words = ex.phrase(here.draw)
    name = here.some("int")
    return here.pair(f'print(f"{words}', f' {{{name}}}")', f'print("{words}', '")')


def if_ternary(rng: random.Random) -> Pair:
    here = Context(rng)
    test = here.some("bool")
    value, other = ex.integer(here.draw, here.scope), ex.integer(here.draw, here.scope)
    name = here.scope.new(here.draw, "int")
    return here.pair(f"{name} = {value} if {test}", f" else {other}", f"if {test}", ":")


def var_swap(rng: random.Random) -> Pair:
    here = Context(rng)
    a, b, definition = st.related(here.draw, here.scope, here.pad)
    here.text += definition
    return here.pair(f"{a}, {b} = {b},", f" {a}", f"{b}, {a} = {a},", f" {b}")


def lambda_func(rng: random.Random) -> Pair:
    here = Context(rng, inside=False)
    here.start_unit()
    name = here.scope.new(here.draw, "function")
    word = here.draw.pick(names.BY_KIND["function"])
    return here.pair(f"{name} = lambda {word}", f": {word} + {ex.number(here.draw)}", f"def {word}", "():")


def if_equals(rng: random.Random) -> Pair:
    here = Context(rng)
    name = here.some("int")
    value = ex.number(here.draw)
    return here.pair(f"if {name}", f" == {value}:", name, f" = {value}")


def enumerate_range(rng: random.Random) -> Pair:
    here = Context(rng)
    values = here.some("list")
    counter = here.draw.pick(names.COUNTERS)
    name = here.some("element")
    stop = ex.number(here.draw)
    return here.pair(f"for {counter}, {name} in", f" enumerate({values}):", f"for {counter} in", f" range({stop}):")


def var_if(rng: random.Random) -> Pair:
    here = Context(rng)
    name = here.some("bool")
    value = here.draw.pick(("True", "False"))
    return here.pair(f"if {name} == {value}", ":", f"{name} = {value}", "")


def while_return_true(rng: random.Random) -> Pair:
    return Context(rng, inside=True).pair("while True", ":", "return True", "")
