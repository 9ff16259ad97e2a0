"""What circuits of one model are judged by: their loss and accuracy on one set of prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit.ablated.ablation import Means
from circuit.ablated.batches import AnswerBatch, all_batches
from circuit.ablated.calibration import IDENTITY, Calibration, calibrate, calibrations, task_loss
from circuit.ablated.compact import AblatedModel, Edges
from circuit.ablated.nodes import NodeIndex
from circuit.search.watch import SILENT, Watch
from circuit.tasks import PairBatch
from sparse_model.model.transformer import SparseTransformer

SOFTER = torch.tensor([0.75**i for i in range(16)], dtype=torch.float64)[:, None, None]
"""Times a fitted calibration that one of several worlds may be."""

SAMPLED_PROMPTS = 32
"""Prompts of each world that estimates are made from, where there are several worlds."""


class Score(NamedTuple):
    """Two-way cross-entropy in nats, averaged over all prompts, and the share of prompts whose right answer wins,
    a tie being half a win."""

    loss: float
    accuracy: float


class World(NamedTuple):
    """Prompts, in batches, and the nodes `rest` (N,) that have their own values there whether a circuit keeps them or
    not: all other nodes outside the circuit are ablated. `limit`: times the target that the loss may be here."""

    rest: Tensor
    batches: Sequence[AnswerBatch]
    limit: float = 1.0

    @property
    def prompts(self) -> int:
        return sum(len(batch.sides) for batch in self.batches)

    def sampled(self, every: int) -> World:
        """With the first of every so many prompts of each batch."""
        return self._replace(batches=[AnswerBatch(*(field[::every] for field in batch)) for batch in self.batches])


def every_prompt(world: World) -> int:
    """Of how many prompts of a world one is in a sample."""
    return math.ceil(world.prompts / SAMPLED_PROMPTS)


class Judge:
    """What models with some nodes ablated make of one set of prompts.

    `keep` is boolean (N,) over all nodes of the model, in the order of `NodeIndex`. `watch` is told what is judged.
    Where there are several `worlds`, their prompts, one world after the other, have one calibration in common; a loss
    is then the mean over all prompts, or that of a world divided by the world's limit, whichever is largest. The
    calibration that is best for the mean is made softer as long as this lowers the loss, and where it is at `enough` or
    below as far as it stays there: what a large scale gains in these worlds it may lose in others.
    Calibrations multiply logits by `max_scale` at the most.
    """

    def __init__(
        self,
        model: SparseTransformer,
        means: Means,
        data: PairBatch,
        watch: Watch = SILENT,
        worlds: Sequence[World] = (),
        *,
        max_scale: float | None = None,
        enough: float = 0.0,
    ) -> None:
        self.enough = enough
        self.model, self.means, self.index, self.watch = model, means, NodeIndex(model), watch
        self.data, self.max_scale = data, math.inf if max_scale is None else max_scale
        device = model.embedding.device
        nothing = torch.zeros(self.index.total, dtype=torch.bool, device=device)
        self.worlds = list(worlds) or [World(nothing, all_batches(data, device))]
        self.sizes = [world.prompts for world in self.worlds]
        self.sides = torch.cat([batch.sides for world in self.worlds for batch in world.batches])

    def among(self, worlds: Sequence[World], enough: float = 0.0) -> Judge:
        """The same of other worlds."""
        return Judge(self.model, self.means, self.data, self.watch, worlds, max_scale=self.max_scale, enough=enough)

    @cached_property
    def sample(self) -> Judge:
        """The same by at most `SAMPLED_PROMPTS` of each of several worlds: enough to tell what may go or is lacking,
        not to decide it."""
        if len(self.worlds) == 1:
            return self
        return self.among([world.sampled(every_prompt(world)) for world in self.worlds], self.enough)

    def everything(self) -> Tensor:
        """`keep` of the whole model."""
        return torch.ones(self.index.total, dtype=torch.bool, device=self.sides.device)

    @torch.no_grad()
    def margins(self, keep: Tensor, edges: Edges | None = None) -> Tensor:
        """Margins of all prompts, in the order of `sides`, with the nodes outside `keep` at their means, and of the
        edges between the others only `edges`, if they are given (in one world alone)."""
        assert edges is None or len(self.worlds) == 1
        found = []
        for world in self.worlds:
            compact = AblatedModel(self.model, self.means, self.index.channels(keep | world.rest), edges)
            found += [compact.margins(batch) for batch in world.batches]
        return torch.cat(found)

    def fitted(self, margins: Tensor) -> tuple[float, Calibration]:
        """Loss of margins (P,) after calibration, and the calibration."""
        fit = calibrate(margins, self.sides, self.max_scale)
        lead = fit.scale * margins.double() + fit.shift * self.sides
        if len(self.worlds) == 1:
            return float(self.of_leads(lead)), fit
        losses = self.of_leads(SOFTER[:, 0].to(lead.device) * lead)
        least = float(losses.min())
        softer = float(SOFTER[(losses <= max(least, self.enough)).nonzero()[-1]])
        return least, Calibration(softer * fit.scale, softer * fit.shift)

    def losses(self, margins: Tensor) -> Tensor:
        """(M,) losses of margins (M, P), each after a calibration of its own, on the CPU in float64."""
        scale, shift = calibrations(margins, self.sides, self.max_scale).T[..., None]
        lead = scale * margins.cpu().double() + shift * self.sides.cpu()
        return self.of_leads(lead) if len(self.worlds) == 1 else self.of_leads(SOFTER * lead).amin(0)

    def of_leads(self, lead: Tensor) -> Tensor:
        """(...,) losses of calibrated margins (..., P)."""
        losses = F.softplus(-lead)
        mean = losses.mean(-1)
        if len(self.sizes) == 1:
            return mean
        parts = zip(torch.split(losses, self.sizes, -1), self.worlds, strict=True)
        return torch.stack([mean, *(x.mean(-1) / w.limit for x, w in parts)]).amax(0)

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

    def by_world(self, keep: Tensor, calibration: Calibration) -> list[float]:
        """Loss in each world under a given calibration."""
        lead = calibration.scale * self.margins(keep).double() + calibration.shift * self.sides
        return [float(part.mean()) for part in torch.split(F.softplus(-lead), self.sizes)]


def model_score(model: SparseTransformer, data: PairBatch) -> Score:
    """Score of the whole model, its logits as they are. In float32; only the answer position's two logits."""
    means = {site: torch.zeros(width, device=model.embedding.device) for site, width in NodeIndex(model).widths.items()}
    judge = Judge(model, means, data)  # nothing is at its mean
    return judge.score(judge.everything())
