"""Models that a benchmark is told of, with the options that say which and where."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from circuit.ablated.ablation import Means
from circuit.tasks import TaskData, task_data
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import from_pretrained
from sweeps.commands.opening import prepared
from sweeps.study.study import load_study
from sweeps.trial.task_circuits import summarise_training_text


class Searched(NamedTuple):
    """One model, task and seed to search with."""

    folder: str
    model: SparseTransformer
    means: Means
    task: TaskData
    seed: int


def parser_of_models(description: str | None, tasks: str) -> argparse.ArgumentParser:
    """Options of a benchmark that searches circuits; `tasks` are its default ones."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders or URIs of models of one study")
    parser.add_argument("--study", default="quickstart", help="whose corpus the models were trained on")
    parser.add_argument("--storage", help="folder or URI of that study's data")
    parser.add_argument("--tasks", default=tasks, help="names, with commas")
    parser.add_argument("--seeds", default="0,1,2", help="of the searches, with commas")
    parser.add_argument("--target", type=float, default=0.15, help="task loss in nats")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures into this file as well")
    return parser


def searched_models(options: argparse.Namespace) -> Iterator[Searched]:
    """Every model, task and seed asked for, on so many threads."""
    torch.set_num_threads(options.threads)
    data = prepared(load_study(options.study, options.storage), Console(stderr=True))
    for folder in options.models:
        model, tokenizer = from_pretrained(folder)
        means = summarise_training_text(model.requires_grad_(False), data).means
        for name in options.tasks.split(","):
            task = task_data(name, tokenizer, pairs=256, seed=0)
            for seed in map(int, options.seeds.split(",")):
                yield Searched(folder, model, means, task, seed)
