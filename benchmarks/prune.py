"""Time and size of circuits, the paper's recipe beside ours: `python benchmarks/prune.py --model FOLDER`.

(a) the recipe done plainly (paper_recipe.py), hyper-parameter tuning included; (b) `circuit.search.targets`. Both find
node-pruned circuits of the same model, on the same prompts, at the same target loss, without controls. What method
edge makes of either circuit is shown apart.

Of (a) two things can be shortened. Its *time* is that of --timed-steps real steps, times the number of steps and runs
in full. Its *sizes* come from really learning the masks for --steps steps in each of --tuning runs, but with a
forward pass that computes the same margins from answer positions only: otherwise a task would take hours.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from paper_recipe import Forward, Found, Settings, calibrated_loss, learn, plain_forward, run
from rich.console import Console
from timing import synchronize
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.ablated.batches import POSITIONS, answer_batch
from circuit.ablated.compact import AblatedModel
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.targets import edge_circuits, eliminated, node_circuits
from circuit.tasks import PairBatch, build_task, task_named
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import from_pretrained
from sweeps.cli import status_of
from sweeps.commands.data import prepared
from sweeps.study.study import load_study
from sweeps.trial.task_circuits import pretraining

TASKS = ("single_double_quote", "bracket_counting", "if_equals", "lambda_func")
KEYS = ("recipe_seconds", "ours_seconds", "speedup", "recipe_edges", "ours_edges", "edges_ratio")
PAPER = Settings()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    study = load_study(options.study, options.storage)
    folder = options.model or trained_here(options)
    model, tokenizer = from_pretrained(folder, options.device)
    model.requires_grad_(False)
    means = pretraining(model, prepared(study, Console(stderr=True))).means
    print(explained(options, model))
    print(f"{'':28}{'recipe s':>10}{'ours s':>8}{'speedup':>9}{'recipe':>8}{'ours':>7}{'ratio':>7}  edge-pruned: both")
    figures = {}
    for name in options.tasks.split(","):
        data = build_task(task_named(name), tokenizer, n_train=options.pairs, n_heldout=1, seed=0).train
        found = compared(model, data, means, options)
        if found is None:
            print(f"{name:28}the model does not do this task at {options.target:g} nats")
            continue
        figures[name] = found
        show(name, found)
    figures["geometric_mean"] = geometric_means(list(figures.values()))
    show("geometric mean", figures["geometric_mean"])
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), **figures}, indent=1, default=str))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or URI of a model; left out: one is trained with `sweeps train`")
    parser.add_argument("--train", default="model.d_model=128,training.fraction=0.06,training.anneal=0.5,kind=sparse",
                        help="of the model trained here: its --set options, with commas")  # fmt: skip
    parser.add_argument("--study", default="quickstart", help="whose corpus the model was trained on")
    parser.add_argument("--storage", help="folder or URI of that study's data")
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, with commas")
    parser.add_argument("--target", type=float, default=0.15, help="task loss in nats")
    parser.add_argument("--pairs", type=int, default=256, help="prompt pairs of a task")
    parser.add_argument("--steps", type=int, default=PAPER.steps, help="of the recipe's mask learning, for its sizes")
    parser.add_argument("--tuning", type=int, default=8, help="runs of the recipe; the first is at the centres")
    parser.add_argument("--timed-steps", type=int, default=3, help="plain steps that the recipe's time is taken from")
    parser.add_argument("--restarts", type=int, default=4, help="PruneConfig.restarts of ours")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads, for both")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="write the figures into this file as well")
    return parser.parse_args()


def trained_here(options: argparse.Namespace) -> str:
    folder = tempfile.mkdtemp()
    place = ["--storage", options.storage] if options.storage else []
    chosen = [word for text in options.train.split(",") for word in ("--set", text)]
    if status_of(["train", folder, "--study", options.study, *place, *chosen]) != 0:
        raise SystemExit("the model could not be trained")
    return folder


def explained(options: argparse.Namespace, model: SparseTransformer) -> str:
    config = model.config
    return (
        f"{config.n_layer} layers of width {config.d_model}; {torch.get_num_threads()} threads, {options.device}; "
        f"target {options.target:g} nats\n"
        f"recipe s: {options.tuning} runs of {PAPER.steps} steps and a bisection, extrapolated from "
        f"{options.timed_steps} plain steps and one plain evaluation\n"
        f"recipe: edges of the best of {options.tuning} runs of {options.steps} steps really made"
        + ("" if options.steps == PAPER.steps else f" (lr x {PAPER.steps / options.steps:g} for it)")
    )


def compared(
    model: SparseTransformer, data: PairBatch, means: Means, options: argparse.Namespace
) -> dict[str, float] | None:
    """All figures of one task; None where the model does not do it."""
    judge = Judge(model, means, data)
    config = PruneConfig(target_loss=options.target, pairs=options.pairs, restarts=options.restarts)
    ours_seconds, ours = timed(lambda: node_circuits(Judge(model, means, data), config, [options.target]))
    if not ours:
        return None
    best, evaluations = tuned(model, data, means, options)
    assert best.kept is not None
    step, evaluation = plain_seconds(model, data, means, options.timed_steps)
    once = PAPER.steps * step + evaluations * evaluation
    edge_seconds, cut = timed(lambda: edge_circuits(ours, config))
    nodes = judge.index.flat({site: channels.tolist() for site, channels in best.kept.items()})
    theirs = {options.target: eliminated(judge, nodes, config.model_copy(update={"eliminate": False}), options.target)}
    ours_edges = ours[options.target].size[0]
    return {
        "recipe_seconds": options.tuning * once,
        "recipe_seconds_untuned": once,
        "recipe_seconds_per_step": step,
        "ours_seconds": ours_seconds,
        "speedup": options.tuning * once / ours_seconds,
        "speedup_untuned": once / ours_seconds,
        "recipe_edges": float(best.edges or 0),
        "ours_edges": float(ours_edges),
        "edges_ratio": max(1, ours_edges) / max(1, best.edges or 0),
        "recipe_edges_edge_pruned": float(edge_circuits(theirs, config)[options.target].size[0]),
        "ours_edges_edge_pruned": float(cut[options.target].size[0]),
        "ours_seconds_edge_pruning": edge_seconds,
    }


def tuned(model: SparseTransformer, data: PairBatch, means: Means, options: argparse.Namespace) -> tuple[Found, float]:
    """The run of fewest edges, and how many evaluations the runs took on average."""
    rng = random.Random(0)
    points = [PAPER, *(PAPER.varied(rng) for _ in range(options.tuning - 1))]
    forward = answers_only(model, data, means)
    runs = [run(model, data, means, options.target, point.shortened(options.steps), forward) for point in points]
    best = min(runs, key=lambda found: math.inf if found.edges is None else found.edges)
    return best, sum(found.evaluations for found in runs) / len(runs)


def answers_only(model: SparseTransformer, data: PairBatch, means: Means) -> Forward:
    """The margins of `plain_forward`, from answer positions and prompts batched by length."""
    everything = {name: torch.arange(len(mean), device=mean.device) for name, mean in means.items()}
    whole = AblatedModel(model, means, everything)

    def forward(rows: Tensor, gates: dict[str, Tensor]) -> Tensor:
        order = data.length[rows].argsort(stable=True)
        size = max(1, POSITIONS * len(rows) // int(data.length[rows].sum()))
        batches = [answer_batch(data, part, model.embedding.device) for part in rows[order].split(size)]
        return torch.cat([whole.margins(batch, gates) for batch in batches])[order.argsort()]

    return forward


def plain_seconds(model: SparseTransformer, data: PairBatch, means: Means, steps: int) -> tuple[float, float]:
    """Seconds of one plain step and of one plain evaluation of all prompts."""
    forward = plain_forward(model, data, means)
    taus = learn(data, means, Settings(steps=1), forward)
    step, _ = timed(lambda: learn(data, means, Settings(steps=steps), forward))
    evaluation, _ = timed(
        lambda: calibrated_loss(data, {name: (tau > 0).float() for name, tau in taus.items()}, forward)
    )
    return step / steps, evaluation


def timed(thing: Callable[[], Any]) -> tuple[float, Any]:
    synchronize()
    start = time.perf_counter()
    result = thing()
    synchronize()
    return time.perf_counter() - start, result


def geometric_means(tasks: list[dict[str, float]]) -> dict[str, float]:
    return {key: math.exp(sum(math.log(max(1e-9, task[key])) for task in tasks) / len(tasks)) for key in tasks[0]}


def show(name: str, found: dict[str, float]) -> None:
    print(
        f"{name:28}{found['recipe_seconds']:10.0f}{found['ours_seconds']:8.1f}{found['speedup']:9.0f}"
        f"{found['recipe_edges']:8.1f}{found['ours_edges']:7.1f}{found['edges_ratio']:7.2f}"
        f"  {found['recipe_edges_edge_pruned']:.1f} {found['ours_edges_edge_pruned']:.1f}"
        f"; untuned: speedup {found['speedup_untuned']:.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
