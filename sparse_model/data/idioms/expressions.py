"""Expressions: each function writes one, right for the names in scope. No function here binds a name."""

from sparse_model.data.idioms import names
from sparse_model.data.idioms.names import weighted
from sparse_model.data.idioms.scope import Draw, Scope

_RARE = 0.05
QUOTES = ('"', "'")
_COMPARISONS = weighted([(9, "=="), (1, ">"), (1, "<"), (1, "!=")])


def number(draw: Draw) -> str:
    """A literal whole number, mostly a small one."""
    return draw.pick(names.RARE_NUMBERS if draw.chance(_RARE) else names.NUMBERS)


def word(draw: Draw) -> str:
    """A word of a text, mostly a frequent one."""
    return draw.pick(names.RARE_WORDS if draw.chance(_RARE) else names.WORDS)


def integer(draw: Draw, scope: Scope) -> str:
    """A known number's name or a literal."""
    name = scope.some(draw, "int") if draw.chance(0.6) else None
    return name or number(draw)


def arithmetic(draw: Draw, scope: Scope) -> str:
    """A sum, a length or a plain number."""
    form = draw.between(0, 5)
    values = scope.some(draw, "list")
    if form == 0 and values:
        return f"len({values})"
    if form <= 2:
        return f"{integer(draw, scope)} {draw.pick('+-*')} {integer(draw, scope)}"
    return integer(draw, scope)


def phrase(draw: Draw) -> str:
    """One to three words."""
    text = word(draw)
    while draw.chance(0.35) and text.count(" ") < 2:
        text = f"{text} {word(draw)}"
    return text


def string(draw: Draw) -> str:
    """A phrase in either kind of quotes."""
    quote = draw.pick(QUOTES)
    return f"{quote}{phrase(draw)}{quote}"


def formatted(draw: Draw, scope: Scope) -> str:
    """An f-string with words and then one field; a plain string where the scope has nothing to show."""
    name = scope.some(draw, draw.pick(("int", "str"))) or scope.some(draw, "element") or scope.some(draw, "int")
    if name is None:
        return string(draw)
    quote = draw.pick(QUOTES)
    return f"f{quote}{phrase(draw)} {{{name}}}{quote}"


def numbers(draw: Draw, count: int) -> str:
    """`count` numbers with commas, without brackets."""
    return ", ".join([number(draw) for _ in range(count)])


def flat_list(draw: Draw) -> str:
    """A list of one to six numbers."""
    return f"[{numbers(draw, draw.between(1, 6))}]"


def nested_list(draw: Draw) -> str:
    """A list of one to three rows of equal length."""
    columns = draw.between(1, 3)
    rows = [f"[{numbers(draw, columns)}]" for _ in range(draw.between(1, 3))]
    return f"[{', '.join(rows)}]"


def word_list(draw: Draw) -> str:
    """A list of one to three strings."""
    quote = draw.pick(QUOTES)
    words = draw.distinct(names.WORDS, draw.between(2, 3))
    return f"[{', '.join([quote + word + quote for word in words])}]"


def word_dict(draw: Draw) -> str:
    """A dict from one to three strings to numbers."""
    quote = draw.pick(QUOTES)
    words = draw.distinct(names.WORDS, draw.between(1, 3))
    return f"{{{', '.join([f'{quote}{word}{quote}: {number(draw)}' for word in words])}}}"


def condition(draw: Draw, scope: Scope) -> str:
    """A test of something in scope: a flag, a comparison or a membership; of a literal where nothing is known."""
    form = draw.between(0, 9)
    flag = scope.some(draw, "bool")
    if flag and form <= 4:
        return flag if form <= 2 else f"{flag} == {draw.pick(('True', 'False'))}"
    text = scope.some(draw, "str")
    if text and form == 5:
        return f"{text} == {string(draw)}"
    values = scope.some(draw, "list") or scope.some(draw, "set")
    if values and form == 6:
        return f"{integer(draw, scope)} in {values}"
    name = scope.some(draw, "int") or scope.some(draw, "element")
    return f"{name} {draw.pick(_COMPARISONS)} {number(draw)}" if name else flag or "True"


def file_call(draw: Draw) -> str:
    """An `open(...)`: names of the input side are read, of the output side written, others either."""
    mode = draw.pick("rw")
    side = names.WRITE_SIDE if mode == "w" else names.READ_SIDE
    quote = draw.pick(QUOTES)
    return f"open({file_name(draw, side if draw.chance(0.75) else None, quote)}, {quote}{mode}{quote})"


def file_name(draw: Draw, side: str | None, quote: str) -> str:
    """A literal file name or a path variable; `side` is its first word, None for one that tells nothing."""
    if side is not None and draw.chance(0.6):
        return side + draw.pick(names.PATH_SUFFIXES)
    return f"{quote}{side or draw.pick(names.FILE_STEMS)}{draw.pick(names.FILE_ENDINGS)}{quote}"
