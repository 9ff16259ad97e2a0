"""`sweeps curves` and `sweeps baselines`: circuit size against task loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Annotated, NamedTuple

import pyarrow as pa
import typer
from rich import box
from rich.table import Table
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.ablated.compact import Edges
from circuit.proofs.verdicts import is_counted
from circuit.pruning import check_length
from circuit.search.baselines import BASELINES, KeptParts, cmd, cpr, faithfulness, of_nodes, ordered, smallest_reaching
from circuit.search.config import Method, PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.masks import learn_masks
from circuit.search.targets import Solution, edge_circuits, node_circuits
from circuit.tasks import check_source, source_name, task_data
from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.saved.pretrained import from_pretrained
from sweeps.commands.opening import opened
from sweeps.commands.options import StorageOption
from sweeps.engine.parallel import on_all_cores
from sweeps.frontier.parquet import ROW_ENDING
from sweeps.frontier.rows import parquet_bytes
from sweeps.show.curve_store import CurveStore
from sweeps.show.curves import (
    TARGETS,
    Curve,
    Interval,
    Point,
    mean_curves,
    model_names,
    plot_curves,
    rows_of_model,
    sizes_of,
)
from sweeps.show.plot import image_format
from sweeps.show.progress import Show
from sweeps.show.text import terminal
from sweeps.study.study import Study, load_study
from sweeps.trial.task_circuits import settings

CurveStudyOption = Annotated[
    str, typer.Option(help="whose corpus, tasks and pruning settings: a file or a shipped name")
]
TasksOption = Annotated[
    str | None, typer.Option(help="names or .jsonl files of tasks, with commas; default: the study's")
]
PlotOption = Annotated[str | None, typer.Option(help="draw the curves into this .png, .svg or .pdf file")]

INTERVALS = "in brackets: 95 % bootstrap intervals over tasks"


def curves_command(
    a: Annotated[str, typer.Argument(help="folder or URI of a model, e.g. a sparse one")],
    b: Annotated[str, typer.Argument(help="of the model to compare it with, e.g. a dense one of equal loss")],
    plot: PlotOption = None,
    tasks: TasksOption = None,
    study: CurveStudyOption = "quickstart",
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
    for method in SEARCHED:
        by_name = {name: curves[method] for name, curves in found.items()}
        targets = {target for curves in by_name.values() for curve in curves.values() for target in curve}
        panels[method] = mean_curves(by_name, sorted(targets))
    for title, points in panels.items():
        console.print(_table(f"{title}-pruned: geometric mean of edges", points, ratio=True))
    if plot is not None:
        plot_curves(panels, plot, f"Circuit size against task loss: {' and '.join(names)}")
    return 0


def baselines_command(
    model: Annotated[str, typer.Argument(help="folder or URI of a model")],
    plot: PlotOption = None,
    rows: Annotated[str | None, typer.Option(help="write the sizes into this .parquet file, a row per circuit")] = None,
    tasks: TasksOption = None,
    study: CurveStudyOption = "quickstart",
    storage_uri: StorageOption = None,
) -> int:
    """Learned masks against parts ordered by attribution, integrated gradients or at random, at the same losses.

    Nodes are pruned, but for edge attribution, which orders and prunes edges; of the learned ones, elimination is shown
    apart because the others have none. MIB's CPR and CMD are areas over the share of edges kept, of faithfulness and of
    its distance from 1, means over the tasks that the model solves.
    """
    if plot is not None:
        image_format(plot)  # before an hour of searches
    if rows is not None and not rows.endswith(ROW_ENDING):
        raise InputError(f"rows {rows}; allowed ending: {ROW_ENDING}")
    asked = load_study(study, storage_uri)
    console = terminal()
    with Show(console) as show:
        chosen = _tasks(asked, tasks)
        found = _by_task(_ways, model, _name(model), asked, chosen, show)
        faithful = _by_task(_faithfulness, model, _name(model), asked, chosen, show)
    curves = {way: {task: sizes[way] for task, sizes in found.items() if way in sizes} for way in WAYS}
    points = mean_curves(curves, TARGETS)
    console.print(_table("geometric mean of edges", points, ratio=False))
    console.print(_areas_table([by_way for by_way in faithful.values() if by_way and all(by_way.values())]))
    if rows is not None:
        storage.write_bytes_atomic(rows, baseline_rows(_name(model), found))
    if plot is not None:
        plot_curves({"node": points}, plot, f"Learned masks against baselines: {model_names([model])[0]}")
    return 0


def baseline_rows(model: str, found: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """A Parquet file of sizes: model, task, target_loss, way, edges (null where no circuit counts)."""
    lines = [
        {"model": model, "task": task, "target_loss": target, "way": way, "edges": size}
        for task, by_way in sorted(found.items())
        for way, curve in by_way.items()
        for target, size in sorted(curve.items(), reverse=True)
    ]
    return parquet_bytes(pa.Table.from_pylist(lines, schema=BASELINE_SCHEMA))


BASELINE_SCHEMA = pa.schema(
    {"model": pa.string(), "task": pa.string(), "target_loss": pa.float64(), "way": pa.string(), "edges": pa.int64()}
)
"""Of what `sweeps baselines --rows` writes."""

SEARCHED: tuple[Method, ...] = ("node", "edge")
"""Methods of which curves are drawn: those of a study's searches at many target losses."""

WAYS = ("learned + eliminated", "learned", *BASELINES)
"""Of choosing a circuit's parts."""


class Prune(NamedTuple):
    """What searching one task's circuits takes, in whichever process."""

    model: str
    means: Means
    config: PruneConfig


class Judges(NamedTuple):
    """What circuits are searched with, and what tells which of them count."""

    train: Judge
    heldout: Judge

    def counted(self, nodes: Tensor, edges: Edges | None, n_edges: int, target: float) -> int | None:
        """The size of a circuit; None where it does not count (`sweeps.frontier.counting`)."""
        _, fit = self.train.calibrated(nodes, edges)
        return n_edges if is_counted(n_edges, self.heldout.score(nodes, fit, edges).loss, target) else None

    def margin(self, kept: KeptParts) -> float:
        """Mean margin of a circuit on held-out pairs, its logits as they are."""
        return float(self.heldout.margins(kept.nodes, kept.edges).mean())


def _ways(prune: Prune, task: str) -> dict[str, Curve]:
    """Edges at every target, by way of choosing the parts."""
    judges = _judges(prune, task)
    found: dict[str, Curve] = {}
    for way, eliminate in (("learned + eliminated", True), ("learned", False)):
        config = prune.config.model_copy(update={"eliminate": eliminate})
        found[way] = _edges(judges, node_circuits(judges.train, config, TARGETS))
    for baseline in BASELINES:
        order = ordered(judges.train, baseline, prune.config.seed)
        kept = {target: smallest_reaching(order, target) for target in TARGETS}
        found[baseline] = {target: judges.counted(*circuit, target) for target, circuit in kept.items() if circuit}
    return found


def _faithfulness(prune: Prune, task: str) -> dict[str, Curve]:
    """Faithfulness by share of the model's edges, by way of ordering the parts; none where the model does not do the
    task, for then there is nothing to be faithful to."""
    judges, config = _judges(prune, task), prune.config
    if not _is_solved(judges, config):
        return {}
    train = judges.train
    tau = learn_masks(train.model, train.data, train.means, config, train.at(config.target_loss))
    orders = {"learned": of_nodes(train, tau)} | {way: ordered(train, way, config.seed) for way in BASELINES}
    return {way: faithfulness(order, judges.margin) for way, order in orders.items()}


def _methods(prune: Prune, task: str) -> dict[str, Curve]:
    """Edges at every target, by method; none where the model does not do the task."""
    judges = _judges(prune, task)
    if not _is_solved(judges, prune.config):
        return {}
    nodes = node_circuits(judges.train, prune.config, TARGETS)
    return {"node": _edges(judges, nodes), "edge": _edges(judges, edge_circuits(judges.train, nodes, prune.config))}


def _is_solved(judges: Judges, config: PruneConfig) -> bool:
    heldout = judges.heldout
    return heldout.score(heldout.everything()).loss <= (config.solved_loss or config.target_loss)


def _judges(prune: Prune, task: str) -> Judges:
    model, tokenizer = from_pretrained(prune.model)
    prompts = task_data(task, tokenizer, pairs=prune.config.pairs, seed=prune.config.seed)
    check_length(model, prompts)
    model.requires_grad_(False)
    batches = (prompts.train, prompts.heldout)
    return Judges(*(Judge(model, prune.means, data, max_scale=prune.config.max_scale) for data in batches))


def _edges(judges: Judges, circuits: Mapping[float, Solution]) -> Curve:
    return {
        target: judges.counted(solution.nodes, solution.edges, solution.size[0], target)
        for target, solution in circuits.items()
    }


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
    config = settings(study).against("all")  # a study may look for faithful circuits as well
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
    rows = [row for row in rows_of_model(uri) if row["task"] in names and row["status"] != "failed"]
    if len({row["target_loss"] for row in rows}) < 2:
        return _searched(uri, name, study, tasks, show)
    found: dict[Method, dict[str, Curve]] = {method: {**sizes_of(rows, method)} for method in SEARCHED}
    missing = [task for task in tasks if source_name(task) not in {row["task"] for row in rows}]
    if missing and named:
        searched = _searched(uri, name, study, missing, show)
        return {method: found[method] | searched[method] for method in SEARCHED}
    if missing:
        show.line(f"{name}: rows hold {len(tasks) - len(missing)} of {len(tasks)} tasks; --tasks searches others")
    return found


def _searched(uri: str, name: str, study: Study, tasks: Sequence[str], show: Show) -> dict[Method, dict[str, Curve]]:
    found = _by_task(_methods, uri, name, study, tasks, show)
    return {method: {task: curves[method] for task, curves in found.items() if curves} for method in SEARCHED}


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


def _areas_table(tasks: Sequence[Mapping[str, Curve]]) -> Table:
    """CPR and CMD by way of ordering, means over tasks."""
    said = f"means over the {len(tasks)} tasks that the model solves; mean ablation, mean margin on held-out pairs"
    table = Table(title="MIB", box=box.SIMPLE_HEAD, title_justify="left", caption=said, caption_justify="left")
    table.add_column("order")
    table.add_column("CPR (high)", justify="right")
    table.add_column("CMD (low)", justify="right")
    for way in tasks[0] if tasks else ():
        areas = [fmean(area(task[way]) for task in tasks) for area in (cpr, cmd)]
        table.add_row(way, *(f"{area:.3f}" for area in areas))
    return table


def _written(mean: float, interval: Interval, between: str) -> str:
    """A mean and, where it is over several tasks, the ends of its interval."""
    if interval is None:
        return f"{_rounded(mean)}{between}".rstrip()
    return f"{_rounded(mean)}{between}({_rounded(interval[0])}–{_rounded(interval[1])})"


def _rounded(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
