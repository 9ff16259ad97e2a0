"""Tasks whose cue stands in the last line itself. Each function draws one pair; the table names and describes them.

The *harder* variant of each asks the same of longer lines, of deeper nesting, of names that the corpus never uses as
such, or with what looks like the cue beside it.
"""

import random

from circuit.tasks.context import Context, PromptPart
from circuit.tasks.pair import Pair
from sparse_model.data.idioms import expressions as ex, names

SUFFIXES: dict[PromptPart, tuple[str, ...]] = {
    part: tuple(end for end in names.PATH_SUFFIXES if (end[1:] in names.HELDOUT_NAMES) == (part == "heldout"))
    for part in ("train", "heldout")
}
"""Ends of a path's name."""


def single_double_quote(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: more words, one of them in quotes of the other kind."""
    here = Context(rng, part)
    if part != "harder":
        words = here.phrase(1, 3)
        return here.pair(f'print("{words}', '")', f"print('{words}", "')")
    before, quoted, after = here.phrase(1, 2), here.phrase(1, 1), here.phrase(1, 2)
    return here.pair(f"print(\"{before} '{quoted}' {after}", '")', f'print(\'{before} "{quoted}" {after}', "')")


def final_kwarg(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: more parameters, unfamiliar names."""
    here = Context(rng, part, inside=False)
    here.start_unit()
    name = here.fresh("function")
    count = here.draw.between(5, 6) if part == "harder" else here.draw.between(2, 4)
    *first, last = here.several(names.BY_KIND["int"], count)
    with_defaults = ", ".join([*(f"{other}={ex.number(here.draw)}" for other in first), last])
    without = ", ".join([*first, last])
    return here.pair(f"def {name}({with_defaults}", f"={ex.number(here.draw)}):", f"def {name}({without}", "):")


def with_as(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: deeper, behind lines of both kinds."""
    here = Context(rng, part)
    here.nested(1)
    for start in here.shuffled("with ", "f = ") if part == "harder" else ():
        here.write(f'{start}open("data.txt", "r"){" as f:" if start == "with " else ""}')
        if start == "with ":
            here.write(f"    print({ex.number(here.draw)})")
    (stem,) = here.several(names.FILE_STEMS, 1)
    call = f'open("{stem}{here.draw.pick(names.FILE_ENDINGS)}", "{here.draw.pick("rw")}'
    (handle,) = here.several(names.BY_KIND["file"], 1)
    return here.pair(f"with {call}", f'") as {handle}:', f"{handle} = {call}", '")')


def bracket_brace(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: as an element of a list, unfamiliar words."""
    here = Context(rng, part)
    start, end = f"{here.fresh('dict')} = ", ""
    if part == "harder":
        start, end = f"{start}[{ex.numbers(here.draw, here.draw.between(1, 2))}, ", "]"
    word, other = here.several(names.WORDS, 2)
    as_key, as_element = f'": {ex.number(here.draw)}}}{end}', f'", "{other}"]{end}'
    return here.pair(f'{start}{{"{word}', as_key, f'{start}["{word}', as_element)


def with_open(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: an unfamiliar end of the name, behind files of both kinds."""
    here = Context(rng, part)
    for side in here.shuffled(names.WRITE_SIDE, names.READ_SIDE) if part == "harder" else ():
        here.write(f'f = open({side}_path, "{"w" if side == names.WRITE_SIDE else "r"}")')
    (handle,) = here.several(names.BY_KIND["file"], 1)
    start, end = ("with ", f" as {handle}:") if here.draw.chance(0.5) else (f"{handle} = ", "")
    rest = f"_{here.several(names.WORDS, 1)[0]}" if part == "harder" else here.draw.pick(SUFFIXES[part])
    written, read = (f'{start}open({side}{rest}, "' for side in (names.WRITE_SIDE, names.READ_SIDE))
    return here.pair(written, f'w"){end}', read, f'r"){end}')


def bracket_counting(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: more and longer rows, and a call within the brackets."""
    here = Context(rng, part)
    inner = f", len({here.known_list()})" if part == "harder" else ""
    start = f"{here.fresh('list')} = "
    longer = part == "harder"
    columns = here.draw.between(3, 4) if longer else here.draw.between(1, 3)
    count = here.draw.between(2, 3) if longer else here.draw.between(1, 2)
    rows = [ex.numbers(here.draw, columns) for _ in range(count)]
    last = f"{inner}, {ex.number(here.draw)}" if longer else ""
    return here.pair(f"{start}[[{'], ['.join(rows)}{last}", "]]", f"{start}[{', '.join(rows)}{last}", "]")


def for_while(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: deeper, an unfamiliar name."""
    here = Context(rng, part)
    values, name = here.known_list(), here.known("element")
    here.nested(2)
    return here.pair(f"for {name}", f" in {values}:", f"while {name}", ":")


def else_elif(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: deeper, a longer body before it."""
    here = Context(rng, part)
    name = here.known("int")
    here.nested(1)
    here.write(f"if {here.condition()}:")
    for _ in range(here.draw.between(2, 3) if part == "harder" else 1):
        here.write(f"    print({here.string()})")
    return here.pair("else", ":", "elif", f" {name} == {ex.number(here.draw)}:")


def fstring_brace(rng: random.Random, part: PromptPart) -> Pair:
    """From two words on, for the first word is one token with the quote before it in one prompt and not in the other.
    Harder: more words."""
    here = Context(rng, part)
    name = here.known("int")
    words = here.phrase(4, 6) if part == "harder" else here.phrase(2, 3)
    return here.pair(f'print(f"{words}', f' {{{name}}}")', f'print("{words}', '")')


def if_ternary(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: deeper, unfamiliar names."""
    here = Context(rng, part)
    test = here.known("bool")
    here.nested(2)
    value, other = (here.known("int") if here.draw.chance(0.6) else ex.number(here.draw) for _ in range(2))
    name = here.fresh("int")
    return here.pair(f"{name} = {value} if {test}", f" else {other}", f"if {test}", ":")


def var_swap(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: deeper, unfamiliar names."""
    here = Context(rng, part)
    a, b = here.related()
    here.nested(2)
    return here.pair(f"{a}, {b} = {b},", f" {a}", f"{b}, {a} = {a},", f" {b}")


def lambda_func(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: unfamiliar names, more lines before."""
    here = Context(rng, part, inside=False)
    here.write_statements(*((2, 3) if part == "harder" else (1, 2)))  # the longer, the less their length tells
    here.start_unit()
    name, word = here.fresh("function"), here.fresh("function")
    return here.pair(f"{name} = lambda {word}", f": {word} + {ex.number(here.draw)}", f"def {word}", "():")


def if_equals(rng: random.Random, part: PromptPart) -> Pair:
    """Inside a function, for without a space before it the name in an assignment would be another token than behind
    `if`. Harder: deeper, an unfamiliar name."""
    here = Context(rng, part, inside=True)
    name = here.known("int")
    here.nested(2)
    value = ex.number(here.draw)
    return here.pair(f"if {name}", f" == {value}:", name, f" = {value}")


def enumerate_range(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: deeper, unfamiliar names."""
    here = Context(rng, part)
    values = here.known_list()
    here.nested(2)
    (counter,) = here.several(names.COUNTERS, 1)
    name = here.fresh("element")
    stop = ex.number(here.draw)
    return here.pair(f"for {counter}, {name} in", f" enumerate({values}):", f"for {counter} in", f" range({stop}):")


def var_if(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: deeper, an unfamiliar name."""
    here = Context(rng, part, inside=True)
    name = here.known("bool")
    here.nested(2)
    value = here.draw.pick(("True", "False"))
    return here.pair(f"if {name} == {value}", ":", f"{name} = {value}", "")


def while_return_true(rng: random.Random, part: PromptPart) -> Pair:
    """Harder: deeper."""
    here = Context(rng, part, inside=True)
    here.nested(2)
    return here.pair("while True", ":", "return True", "")
