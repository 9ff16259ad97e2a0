"""Time, size and held-out loss of circuits, the paper's recipe beside ours: `python benchmarks/prune.py`.

(a) the recipe done plainly (paper_recipe.py), hyper-parameter tuning included; (b) the same, and our elimination on
what it found; (c) `circuit.search.targets` with a study's own settings. All find node-pruned circuits of the same
model, on the same prompts, at the same target loss, without controls, and are judged on the same held-out pairs under
the calibration of their own pairs. What method edge makes of (a) and (c) is shown apart.

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
from timing import processor, synchronize
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.ablated.batches import POSITIONS, answer_batch
from circuit.ablated.compact import AblatedModel, Gates
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge, model_score
from circuit.search.targets import Solution, edge_circuits, minimise, node_circuits
from circuit.tasks import PairBatch, TaskData, build_task, task_named
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import from_pretrained
from sweeps.cli import status_of
from sweeps.commands.opening import prepared
from sweeps.study.study import load_study
from sweeps.trial.task_circuits import settings, summarise_training_text

TASKS = (
    "single_double_quote", "bracket_counting", "if_equals", "lambda_func", "with_as", "with_open", "var_if",
    "bracket_brace",
)  # fmt: skip
MODELS = (
    "kind=sparse,model.d_model=128,training.fraction=0.06,training.anneal=0.5",
    "kind=dense,model.d_model=32",
)
PAPER = Settings()
HEADINGS = (
    ("recipe_seconds", "recipe s", ".0f"), ("ours_seconds", "ours s", ".1f"), ("speedup", "speedup", ".0f"),
    ("recipe_edges", "recipe", ".1f"), ("recipe_eliminated_edges", "+elim", ".1f"), ("ours_edges", "ours", ".1f"),
    ("edges_ratio", "ratio", ".2f"), ("recipe_heldout_loss", "recipe", ".3f"),
    ("recipe_eliminated_heldout_loss", "+elim", ".3f"), ("ours_heldout_loss", "ours", ".3f"),
    ("recipe_edges_edge_pruned", "recipe", ".1f"), ("ours_edges_edge_pruned", "ours", ".1f"),
)  # fmt: skip


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    study = load_study(options.study, options.storage)
    options.restarts = options.restarts or study.pruning.restarts
    config = settings(study, options.target, pairs=options.pairs, restarts=options.restarts)
    solved = options.solved or study.pruning.solved_loss or study.target_loss
    text = prepared(study, Console(stderr=True))
    figures: dict[str, Any] = {"options": vars(options), "processor": processor(), "models": {}}
    for folder in options.model or [trained_here(options, chosen) for chosen in options.train or MODELS]:
        model, tokenizer = from_pretrained(folder, options.device)
        model.requires_grad_(False)
        means = summarise_training_text(model, text).means
        print(explained(options, model))
        found = figures["models"][Path(folder).name] = {}
        for name in options.tasks.split(","):
            data = build_task(task_named(name), tokenizer, n_train=options.pairs, n_heldout=options.pairs, seed=0)
            if model_score(model, data.heldout).loss > solved:
                print(f"{name:22}the model does not do this task")
            elif (figures_of_task := compared(model, data, means, config, options)) is None:
                print(f"{name:22}not even the whole model reaches {options.target:g}")
            else:
                found[name] = figures_of_task
                show(name, figures_of_task)
        if found:
            found["geometric_mean"] = geometric_means(list(found.values()))
            show("geometric mean", found["geometric_mean"])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1, default=str))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="folder or URI of a model, repeatable; left out: trained here")
    parser.add_argument("--train", action="append",
                        help="of a model trained here: its --set options, with commas; repeatable; default: the "
                        "quickstart's sparse model of width 128 and its dense one of width 32")  # fmt: skip
    parser.add_argument("--study", default="quickstart", help="whose corpus and pruning settings")
    parser.add_argument("--storage", help="folder or URI of that study's data")
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, with commas")
    parser.add_argument("--target", type=float, default=0.15, help="task loss in nats")
    parser.add_argument("--solved", type=float, help="own loss of the model above which a task is left out, in nats")
    parser.add_argument("--pairs", type=int, default=256, help="prompt pairs of a task, and as many held out")
    parser.add_argument("--steps", type=int, default=PAPER.steps, help="of the recipe's mask learning, for its sizes")
    parser.add_argument("--tuning", type=int, default=8, help="runs of the recipe; the first is at the centres")
    parser.add_argument("--timed-steps", type=int, default=3, help="plain steps that the recipe's time is taken from")
    parser.add_argument("--restarts", type=int, help="PruneConfig.restarts of ours; default: the study's")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads, for both")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="write the figures into this file as well")
    return parser.parse_args()


def trained_here(options: argparse.Namespace, chosen: str) -> str:
    folder = f"{tempfile.mkdtemp()}/{'sparse' if 'kind=sparse' in chosen else 'dense'}"
    place = ["--storage", options.storage] if options.storage else []
    assignments = [word for text in chosen.split(",") for word in ("--set", text)]
    if status_of(["train", folder, "--study", options.study, *place, *assignments]) != 0:
        raise SystemExit("the model could not be trained")
    return folder


def explained(options: argparse.Namespace, model: SparseTransformer) -> str:
    config = model.config
    groups = f"{'':22}{'time':>27}{'edges':>36}{'held-out loss':>27}{'edge-pruned':>18}"
    headings = "".join(f"{heading:>9}" for _, heading, _ in HEADINGS)
    return (
        f"\n{config.n_layer} layers of width {config.d_model}; {torch.get_num_threads()} threads, {options.device}, "
        f"{processor()}; target {options.target:g} nats; ours with {options.restarts} restart(s)\n"
        f"recipe s: {options.tuning} runs of {PAPER.steps} steps and a bisection, extrapolated from "
        f"{options.timed_steps} plain steps and one plain evaluation\n"
        f"recipe: edges of the best of {options.tuning} runs of {options.steps} steps really made"
        + ("" if options.steps == PAPER.steps else f" (lr x {PAPER.steps / options.steps:g} for it)")
        + f"\n{groups}\n{'':22}{headings}"
    )


def compared(
    model: SparseTransformer, task: TaskData, means: Means, config: PruneConfig, options: argparse.Namespace
) -> dict[str, float] | None:
    """All figures of one task; None where not even the whole model reaches the target."""
    data, target = task.train, options.target
    judge, heldout = (Judge(model, means, pairs, max_scale=config.max_scale) for pairs in (data, task.heldout))

    def heldout_loss(solution: Solution) -> float:
        _, fit = judge.calibrated(solution.nodes, solution.edges)
        return heldout.score(solution.nodes, fit, solution.edges).loss

    ours_seconds, ours = timed(lambda: node_circuits(Judge(model, means, data), config, [target]))
    best, evaluations = tuned(model, data, means, options)
    if not ours or best.kept is None:
        return None
    step, evaluation = plain_seconds(model, data, means, options.timed_steps)
    once = PAPER.steps * step + evaluations * evaluation
    edge_seconds, cut = timed(lambda: edge_circuits(judge, ours, config))
    nodes = judge.index.flat({site: channels.tolist() for site, channels in best.kept.items()})
    theirs = minimise(judge, nodes, config.model_copy(update={"eliminate": False}), target)
    spared = minimise(judge, nodes, config, target)
    ours_edges = ours[target].size[0]
    return {
        "recipe_seconds": options.tuning * once,
        "recipe_seconds_untuned": once,
        "recipe_seconds_per_step": step,
        "ours_seconds": ours_seconds,
        "speedup": options.tuning * once / ours_seconds,
        "speedup_untuned": once / ours_seconds,
        "recipe_edges": float(best.edges or 0),
        "recipe_eliminated_edges": float(spared.size[0]),
        "ours_edges": float(ours_edges),
        "edges_ratio": max(1, ours_edges) / max(1, best.edges or 0),
        "recipe_heldout_loss": heldout_loss(theirs),
        "recipe_eliminated_heldout_loss": heldout_loss(spared),
        "ours_heldout_loss": heldout_loss(ours[target]),
        "recipe_edges_edge_pruned": float(edge_circuits(judge, {target: theirs}, config)[target].size[0]),
        "ours_edges_edge_pruned": float(cut[target].size[0]),
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
        return torch.cat([whole.margins(batch, Gates(gates)) for batch in batches])[order.argsort()]

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
    print(f"{name:22}" + "".join(f"{found[key]:9{form}}" for key, _, form in HEADINGS), flush=True)


if __name__ == "__main__":
    main()
