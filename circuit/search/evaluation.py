"""What circuits of one model are judged by: their loss and accuracy on one set of prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.ablated.batches import all_batches
from circuit.ablated.calibration import IDENTITY, Calibration, calibrated_loss, calibrations, task_loss
from circuit.ablated.compact import AblatedModel, Edges
from circuit.ablated.nodes import NodeIndex
from circuit.search.watch import SILENT, Watch
from circuit.tasks import PairBatch
from sparse_model.model.transformer import SparseTransformer


class Score(NamedTuple):
    """Two-way cross-entropy in nats, averaged over all prompts, and the share of prompts whose right answer wins,
    a tie being half a win."""

    loss: float
    accuracy: float


class Judge:
    """What models with some nodes ablated make of one set of prompts.

    `keep` is boolean (N,) over all nodes of the model, in the order of `NodeIndex`. `watch` is told what is judged.
    Calibrations multiply logits by `max_scale` at the most.
    """

    def __init__(
        self,
        model: SparseTransformer,
        means: Means,
        data: PairBatch,
        watch: Watch = SILENT,
        *,
        max_scale: float | None = None,
    ) -> None:
        self.model, self.means, self.index, self.watch = model, means, NodeIndex(model), watch
        self.data, self.max_scale = data, math.inf if max_scale is None else max_scale
        self.batches = all_batches(data, model.embedding.device)
        self.sides = torch.cat([batch.sides for batch in self.batches])

    def everything(self) -> Tensor:
        """`keep` of the whole model."""
        return torch.ones(self.index.total, dtype=torch.bool, device=self.sides.device)

    @torch.no_grad()
    def margins(self, keep: Tensor, edges: Edges | None = None) -> Tensor:
        """Margins of all prompts, in the order of `sides`, with the nodes outside `keep` at their means, and of the
        edges between the others only `edges`, if they are given."""
        compact = AblatedModel(self.model, self.means, self.index.channels(keep), edges)
        return torch.cat([compact.margins(batch) for batch in self.batches])

    def fitted(self, margins: Tensor) -> tuple[float, Calibration]:
        """Loss of margins (P,) after calibration, and the calibration."""
        return calibrated_loss(margins, self.sides, self.max_scale)

    def losses(self, margins: Tensor) -> Tensor:
        """(M,) losses of margins (M, P), each after a calibration of its own, on the CPU in float64."""
        scale, shift = calibrations(margins, self.sides, self.max_scale).T[..., None]
        return F.softplus(-(scale * margins.cpu().double() + shift * self.sides.cpu())).mean(-1)

    def calibrated(self, keep: Tensor, edges: Edges | None = None) -> tuple[float, Calibration]:
        """Task loss after calibration, and the calibration."""
        loss, calibration = self.fitted(self.margins(keep, edges))
        self.watch.judged(int(keep.sum()), loss)
        return loss, calibration

    def at(self, target: float) -> Callable[[Tensor], bool]:
        """Tells of nodes `keep` (N,) whether they are, calibrated, at a target loss or below."""
        return lambda keep: self.calibrated(keep)[0] <= target

    def score(self, keep: Tensor, calibration: Calibration = IDENTITY, edges: Edges | None = None) -> Score:
        """Loss and accuracy under a given calibration; by default of the logits as they are."""
        margins = self.margins(keep, edges).double()
        lead = calibration.scale * margins + calibration.shift * self.sides
        accuracy = float((lead.sign() + 1).mean() / 2)
        return Score(float(task_loss(margins, self.sides, calibration)), accuracy)


def model_score(model: SparseTransformer, data: PairBatch) -> Score:
    """Score of the whole model, its logits as they are. In float32; only the answer position's two logits."""
    means = {site: torch.zeros(width, device=model.embedding.device) for site, width in NodeIndex(model).widths.items()}
    judge = Judge(model, means, data)  # nothing is at its mean
    return judge.score(judge.everything())
