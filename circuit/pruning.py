"""How a circuit is found (METHOD 6). `find_circuits` is the table of contents."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from circuit.ablated.ablation import Means, Pretraining
from circuit.graph.edges import count_embedding_edges, count_unembedding_edges, edges_between, edges_kept
from circuit.graph.record import Circuit, decimal_means, fingerprint
from circuit.proofs.faithfulness import Controls, necessity
from circuit.proofs.resample import resampled_losses
from circuit.proofs.stability import stability
from circuit.proofs.verdicts import summary
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.targets import Solution, edge_circuits, node_circuits
from circuit.search.watch import Progress, Stopped, Watch
from circuit.tasks import TaskData
from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer

Method = Literal["node", "edge"]
METHODS: tuple[Method, ...] = ("node", "edge")


def find_circuit(
    model: SparseTransformer,
    task: TaskData,
    means: Means,
    config: PruneConfig,
    *,
    method: Method = "node",
    text: Tensor | None = None,
    progress: Progress | None = None,
) -> Circuit:
    """The smallest circuit the search finds that does the task at `config.target_loss` (METHOD 6).

    Nodes are chosen on `task.train`; `task.heldout` is for proofs, and tells whether the whole model does the task:
    where not there is a record of status "unsolved" without nodes. Everything is computed in float32 on the model's
    device.

    `text` (n, T) are windows of pretraining tokens for resample ablation, which is left out without them. `progress` is
    told of every step; where it returns true the search stops, and the record is of status "stopped". What it raises
    goes to the caller, and nothing is left behind.
    """
    return find_circuits(model, task, means, config, (config.target_loss,), (method,), text=text, progress=progress)[0]


def find_circuits(
    model: SparseTransformer,
    task: TaskData,
    means: Means,
    config: PruneConfig,
    targets: Sequence[float],
    methods: Sequence[Method] = METHODS,
    *,
    text: Tensor | None = None,
    progress: Progress | None = None,
) -> list[Circuit]:
    """Circuits of a task for every target loss (nats) and method, in that order, from one search.

    Sizes do not grow as the target loosens. With method "edge" the circuit of method "node" is cut down further: edges
    that the target loss can spare are removed one by one. `config.target_loss` is the target that matters most; a task
    is solved where the whole model's own loss on held-out pairs is at `config.solved_loss`, or else at that target.
    """
    start = time.monotonic()
    if not targets or not all(math.isfinite(target) for target in targets):
        raise InputError(f"targets {list(targets)}; allowed: one or more losses in nats")
    check_length(model, task, text)
    train, heldout = (Judge(model, means, data, max_scale=config.max_scale) for data in (task.train, task.heldout))
    unpruned = heldout.score(heldout.everything()).loss
    is_solved = unpruned <= (config.solved_loss or config.target_loss)
    solved = list(targets) if is_solved else []
    stopped = False
    try:
        found = _search(model, task, means, config, solved, methods, Watch(progress))
    except Stopped:
        found, stopped = None, True
    pretraining = None if text is None else Pretraining(means, text)
    common: dict[str, Any] = {"task": task.name, "model": fingerprint(model), "unpruned_loss": unpruned}
    circuits = [
        Circuit(
            status=_status(solution, is_solved, stopped),
            target_loss=target,
            method=method,
            **common,
            **_losses(train, heldout, solution),
            **_structure(model, task, solution),
            **_proofs(heldout, found, target, method),
            resample_losses=_resampled(train, pretraining, task, solution, config.seed),
            means=decimal_means(means) if solution else {},
            summary="",
            seconds=0,
        )
        for target in targets
        for method in methods
        for solution in [found.circuits[method].get(target) if found else None]
    ]
    seconds = (time.monotonic() - start) / len(circuits)
    return [circuit.model_copy(update={"seconds": seconds, "summary": summary(circuit)}) for circuit in circuits]


def _status(
    solution: Solution | None, is_solved: bool, stopped: bool
) -> Literal["ok", "unsolved", "unreached", "stopped"]:
    if solution:
        return "ok"
    if not is_solved:
        return "unsolved"
    return "stopped" if stopped else "unreached"


def check_length(model: SparseTransformer, task: TaskData, text: Tensor | None = None) -> None:
    """InputError where a prompt is longer than the model's context, or than the windows (n, context) of text."""
    longest = max(task.train.tokens.shape[1], task.heldout.tokens.shape[1])
    if longest > model.config.context:
        raise InputError(
            f"task {task.name}: prompts of up to {longest} tokens; the model's context is {model.config.context}"
        )
    if text is not None and (len(text) == 0 or text.shape[1] < longest):
        raise InputError(
            f"text of {len(text)} windows of {text.shape[1]} tokens; allowed: windows of {longest} and more"
        )


class _Found(NamedTuple):
    """What the search came to: circuits by method and target loss, the control, overlaps between seeds."""

    circuits: dict[str, dict[float, Solution]]
    controls: Controls
    stability: dict[tuple[str, float], float]


def _search(
    model: SparseTransformer,
    task: TaskData,
    means: Means,
    config: PruneConfig,
    solved: Sequence[float],
    methods: Sequence[Method],
    watch: Watch,
) -> _Found:
    """All searches of a task: for its circuits, for those of shuffled answers, and from other seeds."""
    train = Judge(model, means, task.train, watch, max_scale=config.max_scale)
    nodes = node_circuits(train, config, solved)
    circuits: dict[str, dict[float, Solution]] = {"node": nodes, "edge": {}}
    if "edge" in methods:
        circuits["edge"] = edge_circuits(nodes, config)
    watch.stage = "control"
    controls = Controls(model, task.train, means, config, list(nodes), watch)
    watch.stage = "stability"
    return _Found(circuits, controls, stability(train, config, circuits) if config.stability else {})


def _losses(train: Judge, heldout: Judge, solution: Solution | None) -> dict[str, Any]:
    """Of the circuit, or of the whole model where there is none, calibrated on the training pairs."""
    nodes, edges = (solution.nodes, solution.edges) if solution else (train.everything(), None)
    loss, calibration = train.calibrated(nodes, edges)
    score = heldout.score(nodes, calibration, edges)
    return {
        "loss": loss,
        "heldout_loss": score.loss,
        "heldout_accuracy": score.accuracy,
        "uncalibrated_loss": heldout.score(nodes, edges=edges).loss,
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


def _proofs(heldout: Judge, found: _Found | None, target: float, method: Method) -> dict[str, Any]:
    """Necessity on held-out pairs, the shuffled control, and the overlap between seeds."""
    solution = found.circuits[method].get(target) if found else None
    if found is None or solution is None:
        return dict.fromkeys(("necessity_loss", "control_loss", "control_edges", "stability"))
    return {
        "necessity_loss": necessity(heldout, solution.nodes),
        "control_loss": found.controls.loss,
        "control_edges": found.controls.edges(target, method),
        "stability": found.stability.get((method, target)),
    }


def _resampled(
    train: Judge, pretraining: Pretraining | None, task: TaskData, solution: Solution | None, seed: int
) -> dict[float, float]:
    """Losses on held-out pairs under resample ablation, calibrated as the circuit is."""
    if pretraining is None or solution is None:
        return {}
    _, calibration = train.calibrated(solution.nodes, solution.edges)
    kept = train.index.channels(solution.nodes)
    return resampled_losses(train.model, pretraining, kept, solution.edges, task.heldout, calibration, seed=seed)
