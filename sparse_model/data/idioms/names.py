"""Pools of words, each an expanded table in which a word's share falls with its rank.

A uniform draw from a table is then a skewed draw of a word, which is much faster than weighted sampling. Words are
lower-case and short, so that a vocabulary of 2048 holds each as one token.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

Drawn = TypeVar("Drawn")
Kind = Literal["int", "bool", "str", "list", "dict", "set", "text", "file", "function", "element"]


def skewed(words: str, power: float = 0.6) -> tuple[str, ...]:
    """Table in which the word of rank r (from 1) occurs about 24 / r**power times, and at least once."""
    return tuple(word for rank, word in enumerate(words.split(), 1) for _ in range(max(1, round(24 / rank**power))))


def weighted(choices: Sequence[tuple[int, Drawn]]) -> tuple[Drawn, ...]:
    """Table holding each choice as often as its weight says."""
    return tuple(choice for weight, choice in choices for _ in range(weight))


# A growing set and a growing string share one pool, so that a name never tells which of the two it is.
_GROWING = skewed("current result seen output text found answer parts joined unique visited", power=0.6)

BY_KIND: dict[Kind, tuple[str, ...]] = {
    "int": skewed(
        "x count y width size total height a b n index value depth length start end left right limit score low high "
        "level price speed c z middle stop m page"
    ),
    "bool": skewed("ready done active x valid running value a y flag b closed visible"),
    "str": skewed("name text line word label key color value x title data message city letter"),
    "list": skewed("items values rows data words names users points numbers lines x y colors pages cells files"),
    "dict": skewed("data table scores config values x sizes counts options prices ages"),
    "set": _GROWING,
    "text": _GROWING,
    "file": skewed("f file source target stream handle book"),
    "function": skewed("load run check update get add process find total value size key name x count width send build"),
    "element": skewed("x item value row word name user key line point n cell page node color number"),
}
SPARE = ("first", "second", "third", "other", "extra", "more", "spare", "next", "best", "old", "new", "rest")
"""For a scope that has used up the names of a kind. `start` and `end` are never anything but numbers."""

# Numbers that belong together: what gets swapped. Every name has several partners, so that none tells another.
RELATED: tuple[tuple[str, ...], ...] = (
    ("a", "b", "c"),
    ("x", "y", "z"),
    ("left", "right", "middle"),
    ("start", "end", "stop"),
    ("width", "height", "size"),
    ("count", "total", "index"),
    ("a", "b", "n", "m"),
    ("x", "y", "left", "right"),
    ("low", "high", "level"),
    ("depth", "length", "limit"),
)
COUNTERS = skewed("i j n k index m p q pos step")
CLASSES = skewed("Box User Point Item Shape Table Player Node Page Cell Order Task")
ATTRIBUTES = skewed("width height name size color count value depth length score price speed level", power=0.5)
WORDS = skewed(
    "hello total name red value blue done the size count world green error file width user data start end key "
    "line ready height text item list first last point score garden stone silver winter river music paper light",
    power=0.4,
)
# Seen now and then, so that a vocabulary of 2048 can be filled and models meet words they know little about.
RARE_WORDS = skewed(
    "about account action active after age air alone also among animal apple area army ask back bag band bank "
    "base bear bed best bird bit board body bone born bottle bottom box branch bread bridge bring broad brown "
    "burn bus butter buy cake camp car card carry cat cause cent chain chair change cheese chief choice city "
    "class clear close cloth coat cold come cook copy corner cotton course cover cream cup cut danger day dead "
    "dear desk dinner doctor door double dream drink drive dry dust each early east easy egg else empty enjoy "
    "even evening every face fact fall farm fast fear few field fill fine finger fish flat floor fly food foot "
    "form free fresh front full game gas gift girl glad gold good great ground group hair hall hand hard head "
    "hear heat help high hold home hope hot house hungry idea iron island join jump just kind kitchen knee know "
    "lake land late lead leaf leg life lift like lip listen live look love lunch main make many mark market "
    "matter mean meat metal milk mind miss month moon morning mother mouth much nail narrow neck never new next "
    "night nine north note nothing now off office oil once one open order other out page pain pair park part pass "
    "pay pencil picture pink place plane play please pocket post pot press price print push queen quick rain real "
    "rest rich right ring rock roof rope round rub sad sail salt sand say school season second see sell "
    "serve seven shake sheep ship shoe short shout shut side sing sit six skirt sleep slow smell smoke "
    "snow soft song soon sound south space spoon spring square stand station stay step still storm street "
    "strong sugar sun sweet table take talk taste teach team test thick thin third ticket tie time today together "
    "touch train travel trip turn twelve until use usual very village visit wait wall want wash water wave weak "
    "weather week well wet wheel white wife wild wind wine wish wonder wood work write wrong yellow young "
    "zero",
    power=0.0,
)
RARE_NUMBERS = tuple(str(number) for number in range(10, 1000))
NUMBERS = skewed("1 2 3 0 4 5 10 6 7 8 9 20 100 12 50", power=0.4)
FILE_STEMS = skewed("data file text words table a log names report notes scores lines")
READ_SIDE = "input"
WRITE_SIDE = "output"
PATH_SUFFIXES = skewed("_path _file _name _report _notes", power=0.4)
FILE_ENDINGS = skewed(".txt .csv", power=0.4)

HELDOUT_NAMES = frozenset(
    [
        "depth",
        "length",
        "limit",
        "low",
        "high",
        "level",
        "speed",
        "price",
        "valid",
        "running",
        "closed",
        "visible",
        "users",
        "points",
        "pages",
        "cells",
        "config",
        "options",
        "seen",
        "found",
        "joined",
        "visited",
        "source",
        "target",
        "book",
        "find",
        "process",
        "send",
        "build",
        "user",
        "point",
        "cell",
        "page",
        "k",
        "q",
        "pos",
        "Player",
        "Order",
        "Cell",
        "world",
        "green",
        "error",
        "garden",
        "stone",
        "silver",
        "winter",
        "report",
        "notes",
    ]
)
"""Words of the pools above that no training prompt of a task holds; its held-out prompts have them where the task
leaves names or words free (`circuit.tasks`). The corpus writes them like any others."""
