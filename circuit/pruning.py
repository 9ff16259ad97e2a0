"""How a circuit is found (METHOD 6). `find_circuit` is the table of contents."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from circuit.ablation import Means
from circuit.config import PruneConfig
from circuit.discretise import bisect_nodes, eliminate
from circuit.edges import count_embedding_edges, count_unembedding_edges, edges_between
from circuit.evaluation import Judge
from circuit.faithfulness import necessity, shuffled_control
from circuit.graph import Circuit, fingerprint, stored_means
from circuit.masks import Progress, learn_masks
from circuit.tasks import TaskData
from sparse_model.model import SparseTransformer


def find_circuit(
    model: SparseTransformer,
    task: TaskData,
    means: Means,
    config: PruneConfig,
    *,
    progress: Progress | None = None,
) -> Circuit:
    """The smallest circuit the search finds that does the task at `config.target_loss` (METHOD 6).

    Nodes are chosen on `task.train`; `task.heldout` is for proofs only. Where the model does not do the task unpruned
    there is a record of status "unsolved" without nodes. Everything is computed in float32 on the model's device.
    """
    start = time.monotonic()
    train, heldout = (Judge(model, means, data) for data in (task.train, task.heldout))
    unpruned = train.score(train.everything()).loss
    keep = None
    if unpruned <= (config.solved_loss or config.target_loss) and train.at(config.target_loss)(train.everything()):
        tau = learn_masks(model, task.train, means, config, train.at(config.target_loss), progress)
        keep = bisect_nodes(train, tau, config.target_loss)
        assert keep is not None, "the whole model reached the target just now"
        keep = eliminate(train, keep, config.target_loss) if config.eliminate else keep
    return Circuit(
        task=task.name,
        model=fingerprint(model),
        status="unsolved" if keep is None else "ok",
        target_loss=config.target_loss,
        unpruned_loss=unpruned,
        **_losses(train, heldout, keep),
        **_structure(model, task, train, keep),
        **_proofs(model, task, means, config, heldout, keep),
        means={} if keep is None else stored_means(means),
        seconds=time.monotonic() - start,
    )


def _losses(train: Judge, heldout: Judge, keep: Tensor | None) -> dict[str, Any]:
    """Of the circuit, or of the whole model where there is none, calibrated on the training pairs."""
    keep = train.everything() if keep is None else keep
    loss, calibration = train.calibrated(keep)
    score = heldout.score(keep, calibration)
    return {
        "loss": loss,
        "heldout_loss": score.loss,
        "heldout_accuracy": score.accuracy,
        "scale": calibration.scale,
        "shift": calibration.shift,
    }


def _structure(model: SparseTransformer, task: TaskData, judge: Judge, keep: Tensor | None) -> dict[str, Any]:
    """Nodes, edges and their counts."""
    if keep is None:
        nothing = dict.fromkeys(("n_nodes", "n_edges", "n_embedding_edges", "n_unembedding_edges"), 0)
        return {"nodes": {}, "edges": (), **nothing}
    kept = judge.index.channels(keep)
    edges = edges_between(model, kept)
    return {
        "nodes": {site: tuple(channels.tolist()) for site, channels in kept.items() if len(channels)},
        "edges": tuple(edges),
        "n_nodes": int(keep.sum()),
        "n_edges": len(edges),
        "n_embedding_edges": count_embedding_edges(model, kept, task.train),
        "n_unembedding_edges": count_unembedding_edges(model, kept, task.train),
    }


def _proofs(
    model: SparseTransformer, task: TaskData, means: Means, config: PruneConfig, heldout: Judge, keep: Tensor | None
) -> dict[str, Any]:
    """Necessity on held-out pairs, and the shuffled control."""
    if keep is None:
        return {"necessity_loss": None, "control_loss": None, "control_edges": None}
    control = shuffled_control(model, task.train, means, config)
    return {
        "necessity_loss": necessity(heldout, keep),
        "control_loss": control.loss,
        "control_edges": control.edges,
    }
