"""What a recipe makes of a study's tokens, without its circuits: loss, and how many tasks the model does by itself.

    python benchmarks/recipes.py kind=dense model.d_model=24,32 training.lr=0.007,0.012

Commas make a grid. What is not set is as the study has it; what it leaves open has to be set. A row per model:
validation loss in nats per token, tasks whose loss on held-out pairs is at the study's, seconds of this process in
training, share of dead neurons, nonzeros; then the tasks it does not do, with their losses.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timing import processor

from circuit.search.evaluation import model_score
from circuit.tasks import TaskData, task_data
from sparse_model.data.loader import TokenDataset
from sparse_model.errors import InputError
from sparse_model.model.config import SECTIONS
from sparse_model.training.loop import train
from sweeps.commands.one import chosen
from sweeps.commands.opening import prepared
from sweeps.study.space import TrialConfig
from sweeps.study.study import Study, load_study
from sweeps.study.yamlfile import parse_yaml
from sweeps.trial.settings import settings

HEAD = "| recipe | validation loss | tasks | seconds | dead | nonzeros | not done |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="field=value[,value...]")
    parser.add_argument("--seeds", default="0", help="of weights and data order, with commas")
    parser.add_argument("--study", default="quickstart", help="whose corpus, tasks and space")
    parser.add_argument("--storage", help="folder or URI of that study's data")
    parser.add_argument("--json", type=Path, help="write the figures into this file as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(options.study, options.storage)
    data = prepared(study, Console(stderr=True))
    config = settings(study)
    tasks = [task_data(name, data.tokenizer, pairs=config.pairs, seed=config.seed) for name in study.task_sources]
    rows: list[dict[str, Any]] = []
    print(f"{processor()}, one thread\n\n{HEAD}\n|{' --- |' * 7}")
    for given, seed in itertools.product(grid(options.settings), map(int, options.seeds.split(","))):
        try:
            row = made(recipe(study, given, seed), data, tasks, config.solved_loss or config.target_loss)
        except InputError as error:
            print(f"| {' '.join(given)} | {error} |", flush=True)
            continue
        row |= {"recipe": list(given), "seed": seed}
        print(spelled(row), flush=True)
        rows.append(row)
        if options.json is not None:
            options.json.write_text(json.dumps({"processor": processor(), "rows": rows}))


def grid(texts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every choice of one value for each field."""
    fields = [text.partition("=") for text in texts]
    return itertools.product(*([f"{name}={value}" for value in values.split(",")] for name, _, values in fields))


def recipe(study: Study, given: Sequence[str], seed: int) -> TrialConfig:
    """A trial of the study, with other values than its own where it fixes one."""
    fields = {text.partition("=")[0]: text for text in given}
    kind = fields.get("kind", "kind=sparse").partition("=")[2]
    open_ = {"kind"}.union(*(study.space.sampled(one) for one in study.space.kinds() if one == kind))
    config = chosen(study.space, [text for field, text in fields.items() if field in open_], seed).model_dump()
    for field in fields.keys() - open_:
        section, _, name = field.partition(".")
        if section not in SECTIONS or not name:
            raise InputError(f"{fields[field]!r}; allowed: kind=…, model.<field>=… or training.<field>=…")
        config[section][name] = parse_yaml(f"value: {fields[field].partition('=')[2]}", fields[field])["value"]
    return TrialConfig.model_validate(config)


def made(config: TrialConfig, data: TokenDataset, tasks: Sequence[TaskData], solved_loss: float) -> dict[str, Any]:
    """One model trained, and the losses of the tasks that it does not do."""
    start = time.process_time()
    result = train(config.model, config.training, data)
    seconds = time.process_time() - start
    losses = {task.name: model_score(result.model, task.heldout).loss for task in tasks}
    figures = {name: result.metrics[name] for name in ("val_loss", "dead_neurons", "l0")}
    undone = {name: loss for name, loss in losses.items() if loss > solved_loss}
    return figures | {"seconds": seconds, "tasks": len(tasks) - len(undone), "undone": undone, "dtype": result.dtype}


def spelled(row: dict[str, Any]) -> str:
    undone = ", ".join(f"{name} {loss:.2f}" for name, loss in row["undone"].items())
    recipe = f"{' '.join(row['recipe'])}, seed {row['seed']}"
    figures = f"{row['val_loss']:.3f} | {row['tasks']} | {row['seconds']:.0f} | {row['dead_neurons']:.1%}"
    return f"| {recipe} | {figures} | {row['l0']:,.0f} | {undone} |"


if __name__ == "__main__":
    main()
