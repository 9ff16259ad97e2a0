"""What it costs to hold in subsets: `python benchmarks/faithful.py MODEL...`.

Of each model, task and seed a circuit searched plainly and one searched against subsets: edges, seconds of this
process, and the loss in fresh random subsets of the rest, drawn with none of the seeds of a search, under each own
calibration on held-out pairs. Both searches are single: `--restarts` adds more. At the end the ratio of edges and of
seconds (geometric means) and the share of circuits whose worst subset is at most twice the target.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from models import parser_of_models, searched_models
from timing import processor

from circuit.ablated.ablation import Means
from circuit.ablated.batches import all_batches
from circuit.proofs.kept import CircuitParts
from circuit.proofs.subsets import PROBABILITIES, in_subsets
from circuit.pruning import find_circuit
from circuit.search.config import Method, PruneConfig
from circuit.tasks import TaskData
from sparse_model.model.transformer import SparseTransformer

TASKS = "bracket_counting,bracket_brace,if_equals,var_if,lambda_func,with_as,fstring_brace,while_return_true,class_init"
WITHIN = 2.0
"""Times the target that the worst subset may have."""


def main() -> None:
    parser = parser_of_models(__doc__, TASKS)
    parser.add_argument("--restarts", type=int, default=1, help="PruneConfig.restarts of both searches")
    parser.add_argument("--draws", type=int, default=200, help="fresh subsets of each circuit")
    parser.add_argument("--judged", type=int, default=16, help="held-out pairs on which they are")
    options = parser.parse_args()
    print(f"{processor()}, {options.threads} threads, {options.draws} fresh subsets on {options.judged} held-out pairs")
    rows: list[dict[str, Any]] = []
    for folder, model, means, task, seed in searched_models(options):
        found = compared(model, means, task, seed, options)
        if found is not None:
            rows.append({"model": folder, "task": task.name, "seed": seed, **found})
            show(rows[-1])
            if options.json:
                options.json.write_text(json.dumps({"rows": rows, **summed(rows)}, indent=1))
    print(json.dumps(summed(rows), indent=1))


def compared(
    model: SparseTransformer, means: Means, task: TaskData, seed: int, options: argparse.Namespace
) -> dict[str, Any] | None:
    """Figures of both methods; None where the model does not do the task."""
    found: dict[str, Any] = {}
    methods: Sequence[Method] = ("node", "faithful")
    for method in methods:
        config = PruneConfig.model_validate({"target_loss": options.target, "seed": seed, "restarts": options.restarts})
        started = time.process_time()
        circuit = find_circuit(model, task, means, config, method=method)
        if circuit.status != "ok":
            return None
        found[f"{method}_seconds"] = time.process_time() - started
        heldout = all_batches(task.heldout.first(options.judged), torch.device("cpu"))
        drawn = in_subsets(CircuitParts(model, circuit), heldout, options.draws, seed=10_000 + seed)
        by_probability = [drawn.losses[i :: len(PROBABILITIES)] for i in range(len(PROBABILITIES))]
        found |= {
            f"{method}_edges": circuit.n_edges,
            f"{method}_nodes": circuit.n_nodes,
            f"{method}_scale": circuit.scale,
            f"{method}_heldout": circuit.heldout_loss,
            f"{method}_mean": drawn.mean,
            f"{method}_worst": drawn.worst,
            f"{method}_by_probability": [sum(losses) / len(losses) for losses in by_probability],
            f"{method}_within": drawn.worst <= WITHIN * options.target,
        }
    return found


def show(row: dict[str, Any]) -> None:
    for method in ("node", "faithful"):
        figures = " ".join(f"{loss:5.2f}" for loss in row[f"{method}_by_probability"])
        print(
            f"{row['task']:20} seed {row['seed']} {method:9} {row[f'{method}_edges']:5} edges "
            f"{row[f'{method}_seconds']:6.1f} s  scale {row[f'{method}_scale']:5.1f}  by p {figures}  "
            f"worst {row[f'{method}_worst']:5.2f}",
            flush=True,
        )


def summed(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ratios of faithful to node, and shares of circuits within their limit."""

    def ratio(figure: str) -> float:
        logs = [math.log(max(1, row[f"faithful_{figure}"]) / max(1, row[f"node_{figure}"])) for row in rows]
        return math.exp(sum(logs) / len(logs)) if logs else math.nan

    shares = {
        f"{method}_share_within": sum(row[f"{method}_within"] for row in rows) / len(rows) if rows else math.nan
        for method in ("node", "faithful")
    }
    return {"circuits": len(rows), "edges_ratio": ratio("edges"), "seconds_ratio": ratio("seconds"), **shares}


if __name__ == "__main__":
    main()
