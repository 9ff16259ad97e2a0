"""The table of tasks, in the order of METHOD section 5.

Adding a task is adding one entry: see docs/tasks.md.
"""

import random
import zlib
from collections.abc import Callable, Mapping
from functools import partial

from circuit.tasks import local, tracking
from circuit.tasks.context import PROMPT_PARTS, PromptPart
from circuit.tasks.pair import Pair, Task
from sparse_model.errors import InputError

ONE_LINE = "the line of the cue is the task: it has no names that could differ"
SAME_NAME = "the name is always `current`, which leaves two lines"


def _drawn(write: Callable[[random.Random, PromptPart], Pair], part: PromptPart, rng: random.Random) -> Pair:
    return write(rng, part)


def _entry(
    name: str,
    description: str,
    write: Callable[[random.Random, PromptPart], Pair],
    belongs: Mapping[str, str] | None = None,
    remark: str = "",
) -> Task:
    """A task from one function that draws pairs of every part."""
    train, heldout, harder = (partial(_drawn, write, part) for part in PROMPT_PARTS)
    return Task(name, description, train, heldout, harder, belongs or {}, remark)


_ENTRIES = (
    _entry("single_double_quote", "close a string with the kind of quote that opened it", local.single_double_quote),
    _entry(
        "final_kwarg",
        "give the last parameter a default if the others have one",
        local.final_kwarg,
        {"words": "the defaults are the cue, and are numbers"},
    ),
    _entry("set_or_string", "extend a variable as what it was begun as, a set or a string", tracking.set_or_string),
    _entry(
        "set_or_string_fixedvarname",
        "the same, the variable always named `current`",
        tracking.set_or_string_fixedvarname,
        {"cue_lines_in_both": SAME_NAME},
    ),
    _entry(
        "class_init",
        "store the argument that bears the attribute's name",
        tracking.class_init,
    ),
    _entry(
        "with_as",
        "name the opened file after the call in a `with`, end the line otherwise",
        local.with_as,
        remark="asked a token before ` as`: quote, bracket and end of line are one token, so behind quote and bracket "
        "no prompt could end the line; the answers are that token with the end of the line and without",
    ),
    _entry("bracket_brace", "a first string in braces is a key, in brackets an element", local.bracket_brace),
    _entry(
        "with_open",
        "open output for writing and input for reading",
        local.with_open,
        {
            "words": "the name is the cue: `output` or `input`",
            "unknown_names": "paths are defined nowhere, in the corpus neither",
        },
    ),
    _entry("bracket_counting", "close as many brackets as are open", local.bracket_counting),
    _entry("for_while", "`in` after the name in a `for`, a colon in a `while`", local.for_while),
    _entry(
        "else_elif",
        "a colon after `else`, a condition after `elif`",
        local.else_elif,
        {
            "last_token": "the last token is the cue, in the paper's task as well: a bigram table can do it",
            "last_token_differs": "the same",
            "cue_lines_in_both": ONE_LINE,
        },
    ),
    _entry("fstring_brace", "open a field in a formatted string, not in a plain one", local.fstring_brace),
    _entry("if_ternary", "`else` after a condition within a line, a colon after one that begins it", local.if_ternary),
    _entry("var_swap", "complete the swap of two variables", local.var_swap),
    _entry(
        "indent_for",
        "indent after a `for` line, stay after a plain one",
        tracking.indent_for,
        {
            "last_token": "a line that opens a block ends in another token, in the paper's task as well: the colon",
            "last_token_differs": "the same",
        },
    ),
    _entry("lambda_func", "a colon after a lambda's parameter, brackets after a function's name", local.lambda_func),
    _entry("if_equals", "compare after `if`, assign at the start of a line", local.if_equals),
    _entry("enumerate_range", "enumerate for two loop variables, range for one", local.enumerate_range),
    _entry("var_if", "a colon after a comparison, a new line after an assignment", local.var_if),
    _entry(
        "while_return_true",
        "a colon after `while True`, a new line after `return True`",
        local.while_return_true,
        {"cue_lines_in_both": ONE_LINE},
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ENTRIES}


def task_named(name: str) -> Task:
    """The task of this name; InputError listing all names if there is none."""
    if name not in TASKS:
        raise InputError(f"task: unknown name {name!r}; allowed: {', '.join(TASKS)}")
    return TASKS[name]


def example(task: Task) -> Pair:
    """One pair, always the same, to show what the task asks."""
    return task.pair(random.Random(zlib.crc32(task.name.encode())))
