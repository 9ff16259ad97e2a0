"""How a circuit is found (METHOD 6). `find_circuits` is the table of contents."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.ablated.batches import check_pairs
from circuit.ablated.calibration import Calibration
from circuit.graph.edges import count_embedding_edges, count_unembedding_edges, edges_between, edges_kept
from circuit.graph.evidence import NO_PROOFS, Level
from circuit.graph.record import CIRCUIT_VERSION, Circuit, Edge, decimal_means, fingerprint
from circuit.proofs.prove import Ground, prove, with_proofs
from circuit.search.config import METHODS, Method, PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.targets import Solution, edge_circuits, faithful_circuits, node_circuits
from circuit.search.watch import Progress, Stopped, Watch
from circuit.tasks import PairBatch, TaskData
from sparse_model.errors import InputError
from sparse_model.model.inputs import check_tokens
from sparse_model.model.transformer import SparseTransformer

__all__ = ["METHODS", "Method", "check_length", "find_circuit", "find_circuits"]


def find_circuit(
    model: SparseTransformer,
    task: TaskData,
    means: Means,
    config: PruneConfig,
    *,
    method: Method | None = None,
    text: Tensor | None = None,
    harder: PairBatch | None = None,
    proofs: Level = "basic",
    progress: Progress | None = None,
) -> Circuit:
    """The smallest circuit the search finds that does the task at `config.target_loss` (METHOD 6).

    `method` is faithful where `config.ablation` is subsets, else node, if it is left out. Nodes are chosen on
    `task.train`; `task.heldout` is for proofs, and tells whether the whole model does the task: where not there is a
    record of status "unsolved" without nodes. Everything is computed in float32 on the model's device.

    `text` (n, T) are windows of pretraining tokens for resample ablation and nonsense, which are left out without them;
    `harder` are prompts of the task's harder variant. `progress` is told of every step; where it returns true the
    search stops, and the record is of status "stopped", or without proofs if it was found. What it raises goes to the
    caller, and nothing is left behind.
    """
    asked = method or ("faithful" if config.ablation == "subsets" else "node")
    (found,) = find_circuits(
        model,
        task,
        means,
        config,
        (config.target_loss,),
        (asked,),
        text=text,
        harder=harder,
        proofs=proofs,
        progress=progress,
    )
    return found


def find_circuits(
    model: SparseTransformer,
    task: TaskData,
    means: Means,
    config: PruneConfig,
    targets: Sequence[float],
    methods: Sequence[Method] | None = None,
    *,
    text: Tensor | None = None,
    harder: PairBatch | None = None,
    proofs: Level = "basic",
    progress: Progress | None = None,
) -> list[Circuit]:
    """Circuits of a task for every target loss (nats) and method, in that order, from one search.

    Methods are `config.methods(task.name)` if left out. Sizes do not grow as the target loosens. With method "edge" the
    circuit of method "node" is cut down further: edges that the target loss can spare are removed one by one; a circuit
    of method "faithful" holds whatever subset of the other nodes is ablated. `config.target_loss` is the target that
    matters most; a task is solved where the whole model's own loss on held-out pairs is at `config.solved_loss`, or
    else at that target.
    """
    start = time.monotonic()
    if not targets or not all(math.isfinite(target) for target in targets):
        raise InputError(f"targets {list(targets)}; allowed: one or more losses in nats")
    check_length(model, task, text)
    ground = Ground(model, task, means, config, text, harder, Watch(progress))
    heldout = Judge(model, means, task.heldout, max_scale=config.max_scale)
    unpruned = heldout.score(heldout.everything()).loss
    is_solved = unpruned <= (config.solved_loss or config.target_loss)
    methods = methods or config.methods(task.name)
    found = _search(ground, list(targets) if is_solved else [], methods)
    circuits = [
        _described(ground, heldout, unpruned, _status(solution, is_solved, found.stopped), target, method, solution)
        for target in targets
        for method in methods
        for solution in [found.circuits[method].get(target)]
    ]
    searched = (time.monotonic() - start) / len(circuits)
    return list(_proven(ground, circuits, proofs, searched))


def _proven(ground: Ground, circuits: Sequence[Circuit], level: Level, seconds: float) -> Iterator[Circuit]:
    """Every circuit with its proofs; those whose proofs were stopped keep what they are."""
    stopped = False
    for circuit in circuits:
        start, proofs = time.monotonic(), NO_PROOFS
        if circuit.status == "ok" and not stopped:
            ground.watch.stage = "proofs"
            try:
                proofs = prove(ground, circuit, level)
            except Stopped:
                stopped = True
        yield with_proofs(circuit, proofs, seconds + time.monotonic() - start)


def _status(
    solution: Solution | None, is_solved: bool, stopped: bool
) -> Literal["ok", "unsolved", "unreached", "stopped"]:
    if solution:
        return "ok"
    if not is_solved:
        return "unsolved"
    return "stopped" if stopped else "unreached"


def check_length(model: SparseTransformer, task: TaskData, text: Tensor | None = None) -> None:
    """InputError where a prompt is longer than the model's context, or than the windows (n, context) of text, and for
    prompts or text that are no tokens of the model's."""
    longest = max(task.train.tokens.shape[1], task.heldout.tokens.shape[1])
    if longest > model.config.context:
        raise InputError(
            f"task {task.name}: prompts of up to {longest} tokens; the model's context is {model.config.context}"
        )
    for data in (task.train, task.heldout):
        check_pairs(model, data, f"task {task.name}")
    if text is not None:
        check_tokens(text, model.config, longest=max(model.config.context, text.numel()), what="text")
    if text is not None and (len(text) == 0 or text.shape[1] < longest):
        raise InputError(
            f"text of {len(text)} windows of {text.shape[1]} tokens; allowed: windows of {longest} and more"
        )


class _Found(NamedTuple):
    """What the search came to: circuits by method and target loss, and whether it was stopped on the way."""

    circuits: dict[Method, dict[float, Solution]]
    stopped: bool


def _search(ground: Ground, solved: Sequence[float], methods: Sequence[Method]) -> _Found:
    """All searches of a task. Of one that was stopped there is what it had found."""
    config, circuits = ground.config, dict[Method, dict[float, Solution]]()
    found = _Found({method: circuits.setdefault(method, {}) for method in METHODS}, False)
    try:
        if "node" in methods or "edge" in methods:
            circuits["node"] |= node_circuits(ground.judge, config, solved)
        if "edge" in methods:
            circuits["edge"] |= edge_circuits(ground.judge, circuits["node"], config)
        if "faithful" in methods:
            circuits["faithful"] |= faithful_circuits(ground.judge, config, solved)
    except Stopped:
        return found._replace(stopped=True)
    return found


def _described(
    ground: Ground,
    heldout: Judge,
    unpruned: float,
    status: Literal["ok", "unsolved", "unreached", "stopped"],
    target: float,
    method: Method,
    solution: Solution | None,
) -> Circuit:
    """What a circuit is and how well it does the task; nothing is proved yet. Without a solution, how well the whole
    model does it, calibrated."""
    losses, structure = _losses(ground.judge, heldout, solution), _structure(ground, solution)
    return Circuit(
        format="circuit-sweeps/circuit",
        schema_version=CIRCUIT_VERSION,
        task=ground.task.name,
        model=fingerprint(ground.model),
        method=method,
        status=status,
        target_loss=target,
        nodes=structure.nodes,
        edges=structure.edges,
        n_nodes=structure.n_nodes,
        n_edges=len(structure.edges),
        n_embedding_edges=structure.embedding_edges,
        n_unembedding_edges=structure.unembedding_edges,
        loss=losses.loss,
        heldout_loss=losses.heldout,
        heldout_accuracy=losses.accuracy,
        uncalibrated_loss=losses.uncalibrated,
        unpruned_loss=unpruned,
        scale=losses.calibration.scale,
        shift=losses.calibration.shift,
        means=decimal_means(ground.means) if solution else {},
        proofs=NO_PROOFS,
        summary="",
        seconds=0,
    )


class _Losses(NamedTuple):
    loss: float
    calibration: Calibration
    heldout: float
    accuracy: float
    uncalibrated: float


def _losses(train: Judge, heldout: Judge, solution: Solution | None) -> _Losses:
    """Of the circuit, or of the whole model where there is none, as the search calibrated it on the training pairs."""
    nodes, edges = (solution.nodes, solution.edges) if solution else (train.everything(), None)
    loss, calibration = train.fitted(train.margins(nodes, edges))
    if solution is not None and solution.calibration is not None:
        calibration = solution.calibration
        loss = train.score(nodes, calibration, edges).loss
    score = heldout.score(nodes, calibration, edges)
    return _Losses(loss, calibration, score.loss, score.accuracy, heldout.score(nodes, edges=edges).loss)


class _Structure(NamedTuple):
    nodes: dict[str, tuple[int, ...]]
    edges: tuple[Edge, ...]
    n_nodes: int
    embedding_edges: int
    unembedding_edges: int


def _structure(ground: Ground, solution: Solution | None) -> _Structure:
    """Nodes and edges, and how many of them."""
    if solution is None:
        return _Structure({}, (), 0, 0, 0)
    model, kept = ground.model, solution.parts.index.channels(solution.nodes)
    return _Structure(
        {site: tuple(channels.tolist()) for site, channels in kept.items() if len(channels)},
        tuple(edges_kept(edges_between(model, kept), solution.edges)),
        int(solution.nodes.sum()),
        count_embedding_edges(model, kept, ground.task.train),
        count_unembedding_edges(model, kept, ground.task.train),
    )
