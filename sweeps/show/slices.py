"""Pictures of how a study's figures depend on each of its parameters."""

from __future__ import annotations

import io
from typing import Any

import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from optuna.trial import FrozenTrial

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.search.objectives import METRICS
from sweeps.show.plot import INK, LOOKS, image_format


def plot_slices(study: optuna.Study, uri: str) -> None:
    """Draw both figures over every parameter, kinds in colours, into a .png, .svg or .pdf at a path or URI."""
    form = image_format(uri)
    if not study.trials:
        raise InputError("slice: no eligible trial to draw")
    buffer = io.BytesIO()
    _slices(study).savefig(buffer, format=form, dpi=130, facecolor="white")
    storage.write_bytes_atomic(uri, buffer.getvalue())


def _slices(study: optuna.Study) -> Figure:
    names = sorted({name for trial in study.trials for name in trial.params if name != "kind"}) or ["kind"]
    figure = Figure(figsize=(2.6 * len(names) + 1, 5.4), layout="constrained")
    grid = figure.subplots(len(METRICS), len(names), squeeze=False, sharey="row", sharex="col")
    for row, label in enumerate(("validation loss (nats)", "circuit edges")):
        grid[row][0].set_ylabel(label, color=INK)
        for column, name in enumerate(names):
            _slice(grid[row][column], study.trials, name, row)
            if row == len(METRICS) - 1:
                grid[row][column].set_xlabel(name, color=INK, fontsize=9)
    figure.suptitle(f"{study.study_name}: {len(study.trials)} trials", x=0.01, ha="left", color=INK)
    return figure


def _slice(axes: Any, trials: list[FrozenTrial], name: str, metric: int) -> None:
    there = [trial for trial in trials if name in trial.params]
    distribution = there[0].distributions[name]
    words = isinstance(distribution, optuna.distributions.CategoricalDistribution)
    order = {value: str(value) for value in distribution.choices} if words else {}
    for kind, (marker, color) in LOOKS.items():
        mine = [trial for trial in there if trial.user_attrs["kind"] == kind]
        x = [list(order).index(trial.params[name]) if words else trial.params[name] for trial in mine]
        axes.scatter(
            x, [trial.values[metric] for trial in mine], s=26, marker=marker, color=color, alpha=0.8, label=kind
        )
    if words:
        axes.set_xticks(range(len(order)), order.values())
    elif getattr(distribution, "log", False):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if metric == 1:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
