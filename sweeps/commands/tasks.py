"""`sweeps tasks`: what models are asked, and what gives the answers away."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from textwrap import indent
from typing import Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from circuit.tasks import TASKS, Audit, audited, check_source, example, is_file, source_name, task_named
from circuit.tasks.audit import BOUNDS
from sparse_model.errors import InputError
from sweeps.commands.opening import prepared
from sweeps.commands.options import StorageOption
from sweeps.show.text import plain, terminal
from sweeps.study.study import Study, load_study

MEASURES: Mapping[str, str] = {
    "last_token": "last token",
    "length": "length",
    "words": "words",
    "last_token_differs": "last differs",
    "lines_differ": "lines differ",
    "unknown_names": "unknown",
    "unseen_words": "unseen",
    "prompts": "prompts",
    "cue_lines": "cue lines",
    "cue_lines_in_both": "in both",
}
"""What the table shows of an audit, under which heading."""

LEGEND = (
    "last token, length, words: held-out prompts that a rule over the last token, the number of tokens, the words "
    "in the line of the cue gets right (50 %: nothing) · last, lines differ: pairs whose last tokens differ, that "
    "differ in more than a line · unknown: prompts whose cue reads a name that stands nowhere before · unseen: "
    "held-out prompts whose cue has a word that no training prompt has · in both: held-out prompts whose line of the "
    "cue is in the training pairs too · ! beyond its bound · ° belongs to the task"
)


def tasks_command(
    audit: Annotated[bool, typer.Option("--audit", help="measure what else than the cue tells answers")] = False,
    study: Annotated[
        str | None, typer.Option(help="with --audit: whose tasks, tokenizer and number of pairs; default: quickstart")
    ] = None,
    names: Annotated[
        str | None, typer.Option("--tasks", help="with --audit: names or .jsonl files, with commas; default: all")
    ] = None,
    form: Annotated[Literal["table", "json"], typer.Option("--format", help="of an audit")] = "table",
    storage_uri: StorageOption = None,
) -> int:
    """List the tasks, each with a pair of prompts and, after ⟶, what completes them (its first token is the answer).

    With --audit, say of each task what else than its cue tells the answers, in a study's tokens. docs/tasks.md has the
    definitions and the bounds.

    \b
    sweeps tasks
    sweeps tasks --audit
    sweeps tasks --audit --tasks if_equals,my_task.jsonl --format json
    """
    if not audit:
        given = {"--study": study, "--tasks": names, "--storage": storage_uri, "--format json": form == "json"}
        if wrong := [option for option, value in given.items() if value]:
            raise InputError(f"{' and '.join(wrong)}: only with --audit")
        return _listed(terminal())
    asked = load_study(study or "quickstart", storage_uri)
    chosen = _chosen(asked, names)
    tokenizer = prepared(asked, Console(stderr=True)).tokenizer
    pairs, seed = asked.pruning.pairs, asked.pruning.seed
    found = [audited(source, tokenizer, pairs=pairs, seed=seed) for source in chosen]
    if form == "json":
        remarks = map(_remark, chosen)
        rows = [dataclasses.asdict(one) | {"remark": said} for one, said in zip(found, remarks, strict=True)]
        print(json.dumps(rows, indent=1))
        return 0
    console = terminal()
    console.print(_table(found))
    for source, one in zip(chosen, found, strict=True):
        for line in (*map(str, one.said()), *filter(None, [_remark(source)])):
            console.print(plain(f"{one.task}: {line}"), soft_wrap=True)
    return 0


def _listed(console: Console) -> int:
    for task in TASKS.values():
        pair = example(task)
        console.print(f"[bold]{task.name}[/bold]  {task.description}", markup=True)
        for prompt, completion in ((pair.prompt_a, pair.completion_a), (pair.prompt_b, pair.completion_b)):
            console.print(indent(f"{prompt} ⟶ {completion!r}", "    "), markup=False, soft_wrap=True)
            console.print()
    return 0


def _chosen(study: Study, names: str | None) -> Sequence[str]:
    """The sources named, or the study's; InputError where one is no task, or two have one name."""
    chosen = study.task_sources if names is None else tuple(name.strip() for name in names.split(","))
    for source in chosen:
        check_source(source)
    if len({source_name(source) for source in chosen}) < len(chosen):
        raise InputError(f"--tasks {names}; allowed: each name once")
    return chosen


def _remark(source: str) -> str:
    return "" if is_file(source) else task_named(source).remark


def _table(found: Sequence[Audit]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=plain(LEGEND), caption_justify="left")
    table.add_column("task", no_wrap=True)
    for heading in MEASURES.values():
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(plain(one.task), *(_cell(one, name) for name in MEASURES))
    return table


def _cell(one: Audit, name: str) -> str:
    value = getattr(one, name)
    if isinstance(value, int):
        return f"{value:,}"
    beyond = name in BOUNDS and name in one.belongs
    return f"{value:.0%}{'!' if name in one.told else '°' if beyond else ' '}"
