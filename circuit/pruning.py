"""How a circuit is found (METHOD 6). `find_circuits` is the table of contents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from circuit.ablation import Means
from circuit.config import PruneConfig
from circuit.edges import count_embedding_edges, count_unembedding_edges, edges_between, edges_kept
from circuit.evaluation import Judge
from circuit.faithfulness import Controls, necessity
from circuit.graph import Circuit, fingerprint, stored_means
from circuit.masks import Progress
from circuit.search import Solution, edge_circuits, node_circuits
from circuit.tasks import TaskData
from sparse_model.model import SparseTransformer

Method = Literal["node", "edge"]
METHODS: tuple[Method, ...] = ("node", "edge")


def find_circuit(
    model: SparseTransformer,
    task: TaskData,
    means: Means,
    config: PruneConfig,
    *,
    method: Method = "node",
    progress: Progress | None = None,
) -> Circuit:
    """The smallest circuit the search finds that does the task at `config.target_loss` (METHOD 6).

    Nodes are chosen on `task.train`; `task.heldout` is for proofs only. Where the model does not do the task unpruned
    there is a record of status "unsolved" without nodes. Everything is computed in float32 on the model's device.
    """
    return find_circuits(model, task, means, config, (config.target_loss,), (method,), progress=progress)[0]


def find_circuits(
    model: SparseTransformer,
    task: TaskData,
    means: Means,
    config: PruneConfig,
    targets: Sequence[float],
    methods: Sequence[Method] = METHODS,
    *,
    progress: Progress | None = None,
) -> list[Circuit]:
    """Circuits of a task for every target loss (nats) and method, in that order, from one search.

    Sizes do not grow as the target loosens. With method "edge" the circuit of method "node" is cut down further: edges
    that the target loss can spare are removed one by one. `config.target_loss` is the target that matters most; a task
    is solved where the whole model's own loss is at `config.solved_loss`, or else at the target itself.
    """
    start = time.monotonic()
    train, heldout = (Judge(model, means, data) for data in (task.train, task.heldout))
    unpruned = train.score(train.everything()).loss
    solved = [target for target in targets if unpruned <= (config.solved_loss or target)]
    found: dict[Method, dict[float, Solution]] = {"node": node_circuits(train, task.train, config, solved, progress)}
    found["edge"] = edge_circuits(found["node"], config) if "edge" in methods else {}
    controls = Controls(model, task.train, means, config, list(found["node"]))
    seconds = (time.monotonic() - start) / (len(targets) * len(methods))
    common: dict[str, Any] = {
        "task": task.name,
        "model": fingerprint(model),
        "unpruned_loss": unpruned,
        "seconds": seconds,
    }
    return [
        Circuit(
            status="ok" if solution else "unsolved",
            target_loss=target,
            method=method,
            **common,
            **_losses(train, heldout, solution),
            **_structure(model, task, solution),
            **_proofs(heldout, solution, controls, target, method),
            means=stored_means(means) if solution else {},
        )
        for target in targets
        for method in methods
        for solution in [found[method].get(target)]
    ]


def _losses(train: Judge, heldout: Judge, solution: Solution | None) -> dict[str, Any]:
    """Of the circuit, or of the whole model where there is none, calibrated on the training pairs."""
    nodes, edges = (solution.nodes, solution.edges) if solution else (train.everything(), None)
    loss, calibration = train.calibrated(nodes, edges)
    score = heldout.score(nodes, calibration, edges)
    return {
        "loss": loss,
        "heldout_loss": score.loss,
        "heldout_accuracy": score.accuracy,
        "scale": calibration.scale,
        "shift": calibration.shift,
    }


def _structure(model: SparseTransformer, task: TaskData, solution: Solution | None) -> dict[str, Any]:
    """Nodes, edges and their counts."""
    if solution is None:
        nothing = dict.fromkeys(("n_nodes", "n_edges", "n_embedding_edges", "n_unembedding_edges"), 0)
        return {"nodes": {}, "edges": (), **nothing}
    kept = solution.parts.judge.index.channels(solution.nodes)
    edges = edges_kept(edges_between(model, kept), solution.edges)
    return {
        "nodes": {site: tuple(channels.tolist()) for site, channels in kept.items() if len(channels)},
        "edges": tuple(edges),
        "n_nodes": int(solution.nodes.sum()),
        "n_edges": len(edges),
        "n_embedding_edges": count_embedding_edges(model, kept, task.train),
        "n_unembedding_edges": count_unembedding_edges(model, kept, task.train),
    }


def _proofs(
    heldout: Judge, solution: Solution | None, controls: Controls, target: float, method: Method
) -> dict[str, Any]:
    """Necessity on held-out pairs, and the shuffled control."""
    if solution is None:
        return {"necessity_loss": None, "control_loss": None, "control_edges": None}
    return {
        "necessity_loss": necessity(heldout, solution.nodes),
        "control_loss": controls.loss,
        "control_edges": controls.edges(target, method),
    }
