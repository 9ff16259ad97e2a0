"""`sweeps curves` and `sweeps baselines`: circuit size against task loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import typer
from rich import box
from rich.table import Table

from circuit.ablated.ablation import Means
from circuit.pruning import METHODS, Method, check_length
from circuit.search.baselines import BASELINES, scores, sizes
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.targets import Solution, edge_circuits, node_circuits
from circuit.tasks import check_source, source_name, task_data
from sparse_model.errors import InputError
from sparse_model.saved.pretrained import from_pretrained
from sweeps.commands.data import StorageOption
from sweeps.commands.one import opened
from sweeps.commands.parallel import on_all_cores
from sweeps.show.curve_store import CurveStore
from sweeps.show.curves import (
    TARGETS,
    Curve,
    Interval,
    Point,
    mean_curves,
    model_names,
    plot_curves,
    sizes_of,
    stored_rows,
)
from sweeps.show.plot import image_format
from sweeps.show.progress import Show
from sweeps.show.text import terminal
from sweeps.study.study import Study, load_study
from sweeps.trial.task_circuits import settings

StudyOption = Annotated[str, typer.Option(help="whose corpus, tasks and pruning settings: a file or a shipped name")]
TasksOption = Annotated[
    str | None, typer.Option(help="names or .jsonl files of tasks, with commas; default: the study's")
]
PlotOption = Annotated[str | None, typer.Option(help="draw the curves into this .png, .svg or .pdf file")]

INTERVALS = "in brackets: 95 % bootstrap intervals over tasks"


def curves(
    a: Annotated[str, typer.Argument(help="folder or URI of a model, e.g. a sparse one")],
    b: Annotated[str, typer.Argument(help="of the model to compare it with, e.g. a dense one of equal loss")],
    plot: PlotOption = None,
    tasks: TasksOption = None,
    study: StudyOption = "quickstart",
    storage_uri: StorageOption = None,
) -> int:
    """Circuit size of two models at task losses from 0.5 to 0.002 nats, and the ratio of b to a at each.

    A model at <study>/models/<trial> whose rows hold more than one target loss is not pruned again, but for tasks that
    --tasks names and its rows do not hold.
    """
    if plot is not None:
        image_format(plot)  # before an hour of searches
    asked = load_study(study, storage_uri)
    console = terminal()
    chosen = _tasks(asked, tasks)
    named = model_names([a, b]) if a != b else ["a", "b"]
    names = dict(zip(named, (a, b), strict=True))
    with Show(console) as show:
        found = {name: _sizes(uri, name, asked, chosen, tasks is not None, show) for name, uri in names.items()}
    panels: dict[str, list[Point]] = {}
    for method in METHODS:
        by_name = {name: curves[method] for name, curves in found.items()}
        targets = {target for curves in by_name.values() for curve in curves.values() for target in curve}
        panels[method] = mean_curves(by_name, sorted(targets))
    for title, points in panels.items():
        console.print(_table(f"{title}-pruned: geometric mean of edges", points, ratio=True))
    if plot is not None:
        plot_curves(panels, plot, f"Circuit size against task loss: {' and '.join(names)}")
    return 0


def baselines(
    model: Annotated[str, typer.Argument(help="folder or URI of a model")],
    plot: PlotOption = None,
    tasks: TasksOption = None,
    study: StudyOption = "quickstart",
    storage_uri: StorageOption = None,
) -> int:
    """Learned masks against nodes ordered by attribution, integrated gradients or at random, at the same losses.

    All are node-pruned; of the learned ones, elimination is shown apart because the others have none.
    """
    if plot is not None:
        image_format(plot)  # before an hour of searches
    asked = load_study(study, storage_uri)
    console = terminal()
    with Show(console) as show:
        found = _by_task(_ways, model, _name(model), asked, _tasks(asked, tasks), show)
    curves = {way: {task: sizes[way] for task, sizes in found.items() if way in sizes} for way in WAYS}
    points = mean_curves(curves, TARGETS)
    console.print(_table("node-pruned: geometric mean of edges", points, ratio=False))
    if plot is not None:
        plot_curves({"node": points}, plot, f"Learned masks against baselines: {model_names([model])[0]}")
    return 0


WAYS = ("learned + eliminated", "learned", *BASELINES)
"""Of choosing a circuit's nodes."""


class Prune(NamedTuple):
    """What searching one task's circuits takes, in whichever process."""

    model: str
    means: Means
    config: PruneConfig


def _ways(prune: Prune, task: str) -> dict[str, Curve]:
    """Edges at every target, by way of choosing the nodes."""
    judge = _judge(prune, task)
    learned = {}
    for way, eliminate in (("learned + eliminated", True), ("learned", False)):
        config = prune.config.model_copy(update={"eliminate": eliminate})
        learned[way] = _edges(node_circuits(judge, config, TARGETS))
    return learned | {way: sizes(judge, scores(judge, way, prune.config.seed), TARGETS) for way in BASELINES}


def _methods(prune: Prune, task: str) -> dict[str, Curve]:
    """Edges at every target, by method; none where the model does not do the task."""
    judge = _judge(prune, task)
    if judge.score(judge.everything()).loss > (prune.config.solved_loss or prune.config.target_loss):
        return {}
    nodes = node_circuits(judge, prune.config, TARGETS)
    return {"node": _edges(nodes), "edge": _edges(edge_circuits(nodes, prune.config))}


def _judge(prune: Prune, task: str) -> Judge:
    model, tokenizer = from_pretrained(prune.model)
    prompts = task_data(task, tokenizer, pairs=prune.config.pairs, seed=prune.config.seed)
    check_length(model, prompts)
    return Judge(model.requires_grad_(False), prune.means, prompts.train)


def _edges(circuits: Mapping[float, Solution]) -> Curve:
    return {target: solution.size[0] for target, solution in circuits.items()}


def _by_task(
    search: Callable[[Prune, str], dict[str, Curve]],
    uri: str,
    name: str,
    study: Study,
    tasks: Sequence[str],
    show: Show,
) -> dict[str, dict[str, Curve]]:
    """What a search gives for each task, by the task's name. What was found before is not searched again."""
    model, tokenizer, known = opened(uri, study)
    config = settings(study)
    store = CurveStore(study.storage, search.__name__, model, known.means, config, TARGETS)
    prompts = {task: task_data(task, tokenizer, pairs=config.pairs, seed=config.seed) for task in tasks}
    found = {task: curves for task in tasks if (curves := store.read(prompts[task])) is not None}
    missing = [task for task in tasks if task not in found]
    if missing and found:
        show.line(f"{name}: {len(found)} of {len(tasks)} tasks were searched before")
    for task, curves in on_all_cores(partial(search, Prune(uri, known.means, config)), missing):
        store.write(prompts[task], curves)
        found[task] = curves
        show.stage(name, len(found) / len(tasks), f"{len(found)}/{len(tasks)} tasks, last {source_name(task)}")
    return {source_name(task): found[task] for task in tasks}


def _sizes(
    uri: str, name: str, study: Study, tasks: Sequence[str], named: bool, show: Show
) -> dict[Method, dict[str, Curve]]:
    """By method and task: what the study of a trial's model has stored and, where the user has `named` tasks that it
    has not, what a search finds for these. Where it has stored no curve, all tasks are searched."""
    names = {source_name(task) for task in tasks}
    rows = [row for row in stored_rows(uri) if row["task"] in names and row["status"] != "failed"]
    if len({row["target_loss"] for row in rows}) < 2:
        return _searched(uri, name, study, tasks, show)
    found: dict[Method, dict[str, Curve]] = {method: {**sizes_of(rows, method)} for method in METHODS}
    missing = [task for task in tasks if source_name(task) not in {row["task"] for row in rows}]
    if missing and named:
        searched = _searched(uri, name, study, missing, show)
        return {method: found[method] | searched[method] for method in METHODS}
    if missing:
        show.line(f"{name}: rows hold {len(tasks) - len(missing)} of {len(tasks)} tasks; --tasks searches others")
    return found


def _searched(uri: str, name: str, study: Study, tasks: Sequence[str], show: Show) -> dict[Method, dict[str, Curve]]:
    found = _by_task(_methods, uri, name, study, tasks, show)
    return {method: {task: curves[method] for task, curves in found.items() if curves} for method in METHODS}


def _tasks(study: Study, names: str | None) -> tuple[str, ...]:
    """The tasks named, or the study's; InputError where there is no such task."""
    chosen = study.task_sources if names is None else tuple(names.split(","))
    for source in chosen:
        check_source(source)
    if len({source_name(source) for source in chosen}) < len(chosen):
        raise InputError(f"tasks {names}; allowed: each name once")
    return chosen


def _name(uri: str) -> str:
    return uri.split("?")[0].rstrip("/").rsplit("/", 1)[-1]


def _table(title: str, points: Sequence[Point], ratio: bool) -> Table:
    """Points as rows; with `ratio`, the second curve over the first."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption=INTERVALS, caption_justify="left")
    names = list(points[0].means) if points else []
    between = " " if len(names) < 3 else "\n"  # more would not stand beside one another with their intervals
    for heading in ("task loss", "tasks", *names, *(["ratio"] if ratio else [])):
        table.add_column(heading, justify="right")
    for point in points:
        means = [_written(mean, point.intervals[name], between) for name, mean in point.means.items()]
        ratios = [_written(*point.ratio, " x ")] if ratio else []
        table.add_row(f"{point.target:g}", str(point.tasks), *means, *ratios)
    return table


def _written(mean: float, interval: Interval, between: str) -> str:
    """A mean and, where it is over several tasks, the ends of its interval."""
    if interval is None:
        return f"{_rounded(mean)}{between}".rstrip()
    return f"{_rounded(mean)}{between}({_rounded(interval[0])}–{_rounded(interval[1])})"


def _rounded(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
