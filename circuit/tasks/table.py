"""The table of tasks, in the order of METHOD section 5.

Adding a task is adding one entry: see docs/adding_a_task.md.
"""

import random
import zlib

from circuit.tasks import local, tracking
from circuit.tasks.pair import Pair, Task
from sparse_model.errors import InputError

_ENTRIES = (
    Task("single_double_quote", "close a string with the kind of quote that opened it", local.single_double_quote),
    Task("final_kwarg", "give the last parameter a default if the others have one", local.final_kwarg),
    Task("set_or_string", "extend a variable as what it was begun as, a set or a string", tracking.set_or_string),
    Task(
        "set_or_string_fixedvarname",
        "the same, the variable always named `current`",
        tracking.set_or_string_fixedvarname,
    ),
    Task("class_init", "store the argument that bears the attribute's name", tracking.class_init),
    Task("with_as", "name the opened file after the call in a `with`, end the line otherwise", local.with_as),
    Task("bracket_brace", "a first string in braces is a key, in brackets an element", local.bracket_brace),
    Task("with_open", "open output for writing and input for reading", local.with_open),
    Task("bracket_counting", "close as many brackets as are open", local.bracket_counting),
    Task("for_while", "`in` after the name in a `for`, a colon in a `while`", local.for_while),
    Task("else_elif", "a colon after `else`, a condition after `elif`", local.else_elif),
    Task("fstring_brace", "open a field in a formatted string, not in a plain one", local.fstring_brace),
    Task("if_ternary", "`else` after a condition within a line, a colon after one that begins it", local.if_ternary),
    Task("var_swap", "complete the swap of two variables", local.var_swap),
    Task("indent_for", "indent after a `for` line, stay after a plain one", tracking.indent_for),
    Task("lambda_func", "a colon after a lambda's parameter, brackets after a function's name", local.lambda_func),
    Task("if_equals", "compare after `if`, assign at the start of a line", local.if_equals),
    Task("enumerate_range", "enumerate for two loop variables, range for one", local.enumerate_range),
    Task("var_if", "a colon after a comparison, a new line after an assignment", local.var_if),
    Task("while_return_true", "a colon after `while True`, a new line after `return True`", local.while_return_true),
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
