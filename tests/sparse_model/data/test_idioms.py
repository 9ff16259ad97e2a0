"""The generated corpus: it compiles, is the same everywhere, keeps its types, and holds what the tasks need."""

import ast
import hashlib
import itertools
import os
import re
import subprocess
import sys
import time

import pytest

from sparse_model.data.idioms.programs import programs

CORPUS = "\n\n".join(itertools.islice(programs(seed=11), 2500))
MEGABYTES = len(CORPUS) / 1e6

# Task: what its two right answers look like in the corpus, and how much more frequent one may be than the other. That
# is wide where one of them is what most lines of any program do.
BOTH_ANSWERS = {
    "single_double_quote": (r'print\("[a-z ]+"\)\n', r"print\('[a-z ]+'\)\n", 1.3),
    "final_kwarg": (r"def \w+\(\w+=[^()]+, \w+=", r"def \w+\((?!self)\w+, [a-z, ]+\):\n", 2),
    "set_or_string": (r"\n *\w+\.add\(", r"\n *(result|seen|current) \+= ", 3),
    "set_or_string_fixedvarname": (r"\n *current\.add\(", r"\n *current \+= ", 1.3),
    "class_init": (r"self\.width = width\n", r"self\.height = height\n", 1.6),
    "with_as": (r"with open\(\S+, .[rw].\) as", r"\w = open\(\S+, .[rw].\)\n", 2),
    "bracket_brace": (r"= \{[\"']\w+[\"']: ", r"= \[[\"']\w+[\"'], ", 2),
    "with_open": (r"open\(.?output\S*, .w", r"open\(.?input\S*, .r", 1.3),
    "bracket_counting": (r"= \[\[.*\]\]\n", r"= \[\d.*\d\]\n", 1.5),
    "for_while": (r"\n *for \w+ in", r"\n *while (?!True)\w+:\n", 6),
    "else_elif": (r"\n *else:\n", r"\n *elif \w", 1.5),
    "fstring_brace": (r"print\(f.[a-z ]+ \{", r"print\([\"'][a-z ]+[\"']\)", 2),
    "if_ternary": (r" = \w+ if \w+ else", r"\n *if \w+:\n", 4),
    "var_swap": (r"(\w+), (\w+) = \2, \1\n", r"\w+, \w+ = \d+, \d+\n", 3),
    "indent_for": (r"\n    for .*:\n        \w", r"\n    \w+ = .*\n    \w", 12),
    "lambda_func": (r" = lambda \w+: ", r"def \w+\(\):\n", 2),
    "if_equals": (r"\n *if \w+ == ", r"\n *\w+ = ", 25),
    "enumerate_range": (r"for \w+, \w+ in enumerate\(", r"for \w+ in range\(", 1.3),
    "var_if": (r"if \w+ == (True|False):\n", r"\n *\w+ = (True|False)\n", 6),
    "while_return_true": (r"while True:\n", r"return True\n", 4),
}
FEWEST_PER_MEGABYTE = 200


def test_every_program_compiles_and_has_the_stated_size() -> None:
    sizes = []
    for text in itertools.islice(programs(seed=3), 800):
        compile(text, "program", "exec")
        sizes.append(len(text.encode()))
    assert 300 < sum(sizes) / len(sizes) < 900
    assert max(sizes) < 3000


def test_same_seed_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import itertools, hashlib; from sparse_model.data.idioms.programs import programs;"
        "print(hashlib.sha256(''.join(itertools.islice(programs(4), 300)).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    here = "".join(itertools.islice(programs(4), 300))
    assert hashlib.sha256(here.encode()).hexdigest() == other.stdout.strip()
    assert here != "".join(itertools.islice(programs(5), 300))


def test_two_megabytes_take_about_a_second() -> None:
    start, size = time.process_time(), 0
    for text in programs(seed=9):
        size += len(text)
        if size > 2_000_000:
            break
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("task", BOTH_ANSWERS)
def test_both_answers_of_each_task_are_frequent_and_balanced(task: str) -> None:
    pattern_a, pattern_b, most_ratio = BOTH_ANSWERS[task]
    a, b = (len(re.findall(pattern, CORPUS)) / MEGABYTES for pattern in (pattern_a, pattern_b))
    assert min(a, b) > FEWEST_PER_MEGABYTE, (a, b)
    assert max(a, b) / min(a, b) < most_ratio, (a, b)


def _bound_to(tree: ast.AST, value: str) -> set[str]:
    """Names assigned this very expression."""
    return {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value) == value
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def test_sets_are_only_added_to_and_strings_only_extended() -> None:
    """What makes `set_or_string` decidable: within a unit a name begun as one is never used as the other."""
    checked = 0
    for unit in CORPUS.split("\n\n\n")[:2000]:
        tree = ast.parse(unit)
        sets, texts = _bound_to(tree, "set()"), _bound_to(tree, "''")
        assert not sets & texts, unit
        for line in unit.splitlines():
            first = re.match(r" *(\w+)(\.add\(| \+= | = )?(.*)", line)
            if first is None or first[1] not in sets | texts:
                continue
            checked += 1
            began = first[3] in ("set()", '""')
            assert began or first[2] == (".add(" if first[1] in sets else " += "), unit
    assert checked > 500


def test_both_types_often_share_a_unit_as_distractors() -> None:
    both = sum("= set()\n" in unit and '= ""\n' in unit for unit in CORPUS.split("\n\n\n"))
    assert both / MEGABYTES > 100
