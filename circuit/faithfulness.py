"""Proofs that come with every circuit: it is needed, and a nonsense task has none like it (METHOD 6)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from circuit.ablation import Means
from circuit.config import PruneConfig
from circuit.discretise import bisect_nodes, eliminate
from circuit.edges import count_edges
from circuit.evaluation import Judge
from circuit.masks import learn_masks
from circuit.tasks import PairBatch
from sparse_model.model import SparseTransformer


class Control(NamedTuple):
    """Calibrated loss in nats that masks learned for shuffled answers reach; edges if that is the target or less."""

    loss: float
    edges: int | None


def necessity(judge: Judge, keep: Tensor) -> float:
    """Loss in nats of the model's own logits with only the circuit ablated; chance (0.693) or more if it is needed."""
    return judge.score(~keep).loss


def shuffled_control(model: SparseTransformer, data: PairBatch, means: Means, config: PruneConfig) -> Control:
    """The same search on the same prompts with shuffled answers. What it reaches is memorised, not computed."""
    shuffled = data.shuffled(config.seed)
    judge = Judge(model, means, shuffled)
    tau = learn_masks(model, shuffled, means, config, judge.at(config.target_loss))
    reached, _ = judge.calibrated(tau > 0)
    if reached > config.target_loss:
        return Control(reached, None)
    keep = bisect_nodes(judge, tau, config.target_loss)
    assert keep is not None, "the learned nodes reached the target just now"
    keep = eliminate(judge, keep, config.target_loss) if config.eliminate else keep
    return Control(reached, count_edges(model, judge.index.channels(keep)))
