"""Proofs that come with every circuit: it is needed, and a nonsense task has none like it (METHOD 6)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.search.config import PruneConfig
from circuit.search.discretise import bisect_nodes
from circuit.search.evaluation import Judge
from circuit.search.exploration import explore
from circuit.search.masks import learn_masks
from circuit.search.targets import Solution, combined, edge_circuits, eliminated
from circuit.search.watch import SILENT, Watch
from circuit.tasks import PairBatch
from sparse_model.model.transformer import SparseTransformer


def necessity(judge: Judge, keep: Tensor) -> float:
    """Loss in nats of the model's own logits with only the circuit ablated; chance (0.693) or more if it is needed."""
    return judge.score(~keep).loss


class Controls:
    """The same search on the same prompts with shuffled answers. What it reaches is memorised, not computed.

    Searched with the budget of the real one: as many seeds and tuning trials, and masks learned for the strictest
    target and for `config.target_loss`. Where they miss a target there is no control circuit to be had at it.
    """

    def __init__(
        self,
        model: SparseTransformer,
        data: PairBatch,
        means: Means,
        config: PruneConfig,
        targets: Sequence[float],
        watch: Watch = SILENT,
    ) -> None:
        self.config, self.judge = (
            config,
            Judge(model, means, data.shuffled(config.seed), watch, max_scale=config.max_scale),
        )
        learned_at = {min(targets), config.target_loss} & set(targets) if targets else set()
        self.tau: list[Tensor] = []
        self.loss: float | None = None
        for target in sorted(learned_at):
            explore(config.model_copy(update={"target_loss": target}), self._reached)
        self.found: dict[float, Solution] = {}
        if self.loss is not None:
            self.found = {target: self._smallest(target) for target in sorted(targets) if self.loss <= target}
        self.cut = edge_circuits(self.found, config)

    def edges(self, target: float, method: str) -> int | None:
        """Edges of the circuit for shuffled answers; None where there is none."""
        found = self.found if method == "node" else self.cut
        return found[target].size[0] if target in found else None

    def _reached(self, config: PruneConfig) -> float:
        """What masks learned for shuffled answers reach; remembered if it is the least so far."""
        reaches = self.judge.at(config.target_loss)
        tau = learn_masks(self.judge.model, self.judge.data, self.judge.means, config, reaches, None, self.judge.watch)
        self.tau.append(tau)
        loss = self.judge.calibrated(tau > 0)[0]
        self.loss = loss if self.loss is None else min(loss, self.loss)
        return loss

    def _smallest(self, target: float) -> Solution:
        kept = (bisect_nodes(self.judge, tau, target) for tau in self.tau)
        found = [eliminated(self.judge, nodes, self.config, target) for nodes in kept if nodes is not None]
        return combined(found, self.config, target)
