"""What each heuristic of the search earns: `python benchmarks/heuristics.py MODEL...`.

Of each model, task and seed a circuit of method node is searched for with everything, and once without each heuristic.
At the end, for each of them: edges and seconds (of this process) without it, over those with everything; geometric
means over circuits and seeds, with 95 % bootstrap intervals over circuits. A ratio above 1 is what the heuristic earns.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

from models import parser_of_models, searched_models
from timing import processor
from torch import Tensor

from circuit.search import masks
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.learning import Ease, Rescue
from circuit.search.targets import find
from sweeps.search.objectives import bootstrap_interval

TASKS = "bracket_counting,if_equals,lambda_func,var_if"
EVERYTHING = "with everything"


class NoEase(Ease):
    def temper(self, fit: Tensor, margins: Tensor, sides: Tensor) -> None:
        pass

    def turn(self, gradient: Tensor, loss: float) -> None:
        pass


class NoRescue(Rescue):
    def after(self, tau: Tensor, kept: int, loss: float) -> Tensor | None:
        return None


def last_state(states: Sequence[Tensor], near: Sequence[bool], reaches: Callable[[Tensor], bool]) -> Tensor:
    return states[-1]


WITHOUT: Mapping[str, tuple[dict[str, object], dict[str, object]]] = {
    "edges in a node's price": ({"edge_price": 0.0}, {}),
    "a price that rises": ({"steer": 0.0}, {}),
    "retired nodes": ({"retire": 1.0}, {}),
    "a smaller scale where it is easy": ({}, {"Ease": NoEase}),
    "going back where the task breaks down": ({}, {"Rescue": NoRescue}),
    "the best state on the way": ({}, {"best_state": last_state}),
    "all three of these": ({}, {"Ease": NoEase, "Rescue": NoRescue, "best_state": last_state}),
    "elimination": ({"eliminate": False}, {}),
}
"""Heuristic -> fields of `PruneConfig`, and names in `circuit.search.masks`, that take it away."""


def main() -> None:
    options = parser_of_models(__doc__, TASKS).parse_args()
    print(f"{processor()}, {options.threads} threads")
    rows: list[dict[str, Any]] = []
    for folder, model, means, task, seed in searched_models(options):
        judge = Judge(model, means, task.train)
        for what in (EVERYTHING, *WITHOUT):
            row = {"model": folder, "task": task.name, "seed": seed, "without": what}
            rows.append(row | searched(judge, what, options.target, seed))
        told = (f"{row['edges']}/{row['seconds']:.1f}s" for row in rows[-1 - len(WITHOUT) :])
        print(task.name, seed, *told, flush=True)
    figures = {"rows": rows, "earned": earned(rows)}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    for what, of in figures["earned"].items():
        edges, seconds = (f"{of[x]['ratio']:.2f} ({of[x]['low']:.2f}–{of[x]['high']:.2f})" for x in of)
        print(f"{what:40} edges {edges:20} seconds {seconds}")


def searched(judge: Judge, what: str, target: float, seed: int) -> dict[str, float]:
    """Edges of the circuit that is found, and seconds."""
    fields, names = WITHOUT.get(what, ({}, {}))
    config = PruneConfig.model_validate({"target_loss": target, "seed": seed, **fields})
    started = time.process_time()
    with ExitStack() as changes:
        for name, instead in names.items():
            changes.enter_context(mock.patch.object(masks, name, instead))
        found = find(judge, config, "node", [target])
    if not found:
        raise SystemExit(f"{judge.data.n_pairs} pairs: not even the whole model reaches {target}; leave the task out")
    return {"edges": found[target].size[0], "seconds": time.process_time() - started}


def earned(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Of each heuristic the ratio of edges and of seconds without it, over those with everything."""
    return {what: {field: _ratio(rows, what, field) for field in ("edges", "seconds")} for what in WITHOUT}


def _ratio(rows: Sequence[dict[str, Any]], what: str, field: str) -> dict[str, float]:
    logs: dict[tuple[str, str], list[float]] = {}
    base = {(r["model"], r["task"], r["seed"]): r[field] for r in rows if r["without"] == EVERYTHING}
    for row in rows:
        if row["without"] == what:
            whole = base[row["model"], row["task"], row["seed"]]
            floor = 1 if field == "edges" else 1e-9
            logs.setdefault((row["model"], row["task"]), []).append(
                math.log(max(row[field], floor) / max(whole, floor))
            )
    ratios = [math.exp(sum(some) / len(some)) for some in logs.values()]
    low, high = bootstrap_interval(ratios) or (math.nan, math.nan)
    return {"ratio": math.exp(sum(map(math.log, ratios)) / len(ratios)), "low": low, "high": high}


if __name__ == "__main__":
    main()
