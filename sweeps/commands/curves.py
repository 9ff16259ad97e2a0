"""`sweeps curves` and `sweeps baselines`: circuit size against task loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from circuit.baselines import BASELINES, scores, sizes
from circuit.config import PruneConfig
from circuit.evaluation import Judge
from circuit.pruning import METHODS, find_circuits
from circuit.search import node_circuits
from circuit.tasks import TaskData, check_source, source_name, task_data
from sparse_model.errors import InputError
from sweeps.circuits import circuit_row, settings
from sweeps.commands.data import StorageOption
from sweeps.commands.one import opened
from sweeps.curves import TARGETS, Interval, Point, mean_curves, plot_curves, sizes_of, stored_rows
from sweeps.progress import Show
from sweeps.study import Study, load_study
from sweeps.table import terminal

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

    A model at <study>/models/<trial> whose rows hold more than one target loss is not pruned again.
    """
    asked = load_study(study, storage_uri)
    console = terminal()
    names = {"a": a, "b": b} if _name(a) == _name(b) else {_name(a): a, _name(b): b}
    with Show(console) as show:
        found = {name: _rows(uri, name, asked, _tasks(asked, tasks), show) for name, uri in names.items()}
    targets = sorted({row["target_loss"] for rows in found.values() for row in rows})
    panels: dict[str, list[Point]] = {
        method: mean_curves({name: sizes_of(rows, method) for name, rows in found.items()}, targets)
        for method in METHODS
    }
    for method, points in panels.items():
        console.print(_table(f"{method}-pruned: geometric mean of edges", points, ratio=True))
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
    asked = load_study(study, storage_uri)
    console = terminal()
    trained, tokenizer, (means, _) = opened(model, asked)
    config = settings(asked)
    found: dict[str, dict[str, Any]] = {}
    with Show(console) as show:
        for name in _tasks(asked, tasks):
            task = _prompts(name, tokenizer, config)
            judge = Judge(trained, means, task.train)
            for way, curve in _ways(judge, task, config).items():
                found.setdefault(way, {})[name] = curve
            show.line(f"{name}: done")
    points = mean_curves(found, TARGETS)
    console.print(_table("node-pruned: geometric mean of edges", points, ratio=False))
    if plot is not None:
        plot_curves({"node": points}, plot, f"Learned masks against baselines: {_name(model)}")
    return 0


def _ways(judge: Judge, task: TaskData, config: PruneConfig) -> dict[str, dict[float, int | None]]:
    """Edges at every target, by way of choosing the nodes."""
    bare = config.model_copy(update={"eliminate": False})
    learned = {
        "learned + eliminated": node_circuits(judge, task.train, config, TARGETS),
        "learned": node_circuits(judge, task.train, bare, TARGETS),
    }
    curves: dict[str, dict[float, int | None]] = {
        way: {target: solution.size[0] for target, solution in found.items()} for way, found in learned.items()
    }
    return curves | {way: sizes(judge, scores(judge, way, config.seed), TARGETS) for way in BASELINES}


def _rows(uri: str, name: str, study: Study, tasks: Sequence[str], show: Show) -> list[dict[str, Any]]:
    """Circuit rows of a model: those its study has stored, or those of a search now."""
    rows = [row for row in stored_rows(uri) if row["task"] in map(source_name, tasks)]
    if len({row["target_loss"] for row in rows}) > 1:
        return rows
    model, tokenizer, known = opened(uri, study)
    config, rows = settings(study), []
    for task in tasks:
        prompts = _prompts(task, tokenizer, config)
        circuits = find_circuits(model, prompts, known.means, config, TARGETS, METHODS)
        rows += [circuit_row(circuit) for circuit in circuits]
        show.line(f"{name}: {task} done, {circuits[0].seconds * len(circuits):.0f} s")
    return rows


def _prompts(name: str, tokenizer: Any, config: PruneConfig) -> TaskData:
    return task_data(name, tokenizer, pairs=config.pairs, seed=config.seed)


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
    for heading in ("task loss", "tasks", *names, *(["ratio"] if ratio else [])):
        table.add_column(heading, justify="right")
    for point in points:
        means = [_written(mean, point.intervals[name]) for name, mean in point.means.items()]
        ratios = [_written(*point.ratio, " x")] if ratio else []
        table.add_row(f"{point.target:g}", str(point.tasks), *means, *ratios)
    return table


def _written(mean: float, interval: Interval, unit: str = "") -> str:
    """A mean and, where it is over several tasks, the ends of its interval."""
    ends = "" if interval is None else f" ({interval[0]:,.1f}–{interval[1]:,.1f})"
    return f"{mean:,.1f}{unit}{ends}"
