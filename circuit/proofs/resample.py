"""Resample ablation: nodes outside a circuit take values from random pretraining inputs (METHOD 6, faithfulness).

A mean is the same for every prompt, and a circuit may have come to rely on it. Here every prompt is paired with a
*donor*, a random stretch of pretraining text of the same length, and a node outside the circuit is held at

    mean + strength * (its value in the donor's own forward pass, at the same position - mean),

so that strength 0 is mean ablation and strength 1 full resampling. A removed edge passes its source's value held so.
All strengths and the donors go through the whole model side by side: outside nodes vary, nothing can be folded away.

Shapes: M strengths, B prompts, T time, C channels of a site; rows of a batch are (M + 1) * B, the donors last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from circuit.ablated.ablation import Means, Pretraining, float32_activations
from circuit.ablated.batches import AnswerBatch, all_batches
from circuit.ablated.calibration import IDENTITY, Calibration, task_loss
from circuit.ablated.compact import Edges, Nodes, layers_of
from circuit.ablated.hooks import hooked
from circuit.graph.edges import matrices
from circuit.tasks import PairBatch
from sparse_model.errors import InputError
from sparse_model.model.sites import site_names
from sparse_model.model.transformer import Linear, SparseTransformer

STRENGTHS = (0.25, 0.5, 0.75, 1.0)

PAIRS = 32
"""Held-out pairs that are resampled: the whole model is run on each, five times."""


def resampled_losses(
    model: SparseTransformer,
    pretraining: Pretraining,
    kept: Nodes,
    edges: Edges | None,
    data: PairBatch,
    calibration: Calibration = IDENTITY,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> dict[float, float]:
    """Task loss in nats at each strength, of a circuit with nodes `kept` and, if they are given, `edges` among them, on
    the first `PAIRS` pairs of the data.

    InputError where the text is shorter than a prompt.
    """
    mixture = _Mixture(model, pretraining.means, kept, edges, strengths)
    generator = torch.Generator().manual_seed(seed)
    margins, sides = [], []
    with torch.no_grad(), float32_activations(model), mixture.installed():
        for batch in all_batches(data.first(PAIRS), model.embedding.device):
            donors = _donors(pretraining.text, batch.tokens.shape, generator).to(batch.tokens.device)
            margins.append(_margins(model, batch, donors, mixture))
            sides.append(batch.sides)
    found = zip(strengths, torch.cat(margins, 1), strict=True)
    return {strength: float(task_loss(row.double(), torch.cat(sides), calibration)) for strength, row in found}


def _donors(text: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Tokens of the given shape (B, T): random stretches of random windows."""
    (count, length), (n, window) = shape, text.shape
    if window < length:
        raise InputError(f"pretraining text of {window} tokens per window; the longest prompt has {length}")
    rows = torch.randint(n, (count, 1), generator=generator)
    starts = torch.randint(window - length + 1, (count, 1), generator=generator)
    return text.cpu()[rows, starts + torch.arange(length)]


def _margins(model: SparseTransformer, batch: AnswerBatch, donors: Tensor, mixture: _Mixture) -> Tensor:
    """(M, B)."""
    M, B = len(mixture.strengths), len(donors)
    mixture.n_donors = B
    final = model.final(torch.cat([batch.tokens.repeat(M, 1), donors]), mixture.at_site)
    answers = final[: M * B].take_along_dim(batch.last.repeat(M)[:, None, None], 1).squeeze(1)
    logits = model.logits(answers, batch.tokens.gather(1, batch.last[:, None]).squeeze(1).repeat(M))
    right, wrong = (logits.gather(1, token.repeat(M)[:, None]) for token in (batch.right, batch.wrong))
    return (right - wrong).view(M, B)


class _Mixture:
    """What passes at sites and along edges; `n_donors` (B) is set before each forward pass."""

    def __init__(
        self, model: SparseTransformer, means: Means, kept: Nodes, edges: Edges | None, strengths: Sequence[float]
    ) -> None:
        self.model, self.means, self.n_donors = model, means, 0
        self.strengths = torch.tensor(strengths, device=model.embedding.device).view(-1, 1, 1, 1)
        empty = torch.zeros(0, dtype=torch.long, device=model.embedding.device)
        self.kept = {name: kept.get(name, empty) for name in site_names(model.config)}
        self.inside = {
            name: torch.zeros_like(means[name], dtype=torch.bool).index_fill(0, channels, True)
            for name, channels in self.kept.items()
        }
        self.removed = [] if edges is None else list(self._removed(edges))

    def at_site(self, name: str, x: Tensor) -> Tensor:
        """Replaces the activation of a site: kept nodes have their own values, others are held."""
        own, donor = self._parts(x)
        mixed = torch.where(self.inside[name], own, self._held(donor, self.means[name]))
        return torch.cat([mixed.flatten(0, 1), donor])

    def installed(self) -> AbstractContextManager[None]:
        """While it lasts, removed edges pass held values through the model's own matrices."""
        return hooked(self.removed)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(M, B, T, C) of the prompts and (B, T, C) of the donors."""
        own, donor = x[: -self.n_donors], x[-self.n_donors :]
        return own.view(len(self.strengths), self.n_donors, *x.shape[1:]), donor

    def _held(self, donor: Tensor, mean: Tensor) -> Tensor:
        return mean + self.strengths * (donor - mean)

    def _removed(self, edges: Edges) -> Iterator[tuple[Linear, Callable[..., Tensor]]]:
        """Each matrix that has lost edges, and what to do with its output."""
        for i, matrix, source, target, weight in matrices(self.model):
            rows, columns = self.kept[target], self.kept[source]
            block = weight[rows][:, columns].clone()
            for row, column in edges.get(target, rows.new_zeros(0, 2)).tolist():
                block[rows == row, columns == column] = 0
            if block.count_nonzero():
                layer = layers_of(self.model)[i]
                linear = {"qkv": layer.attn.qkv, "out": layer.attn.out, "up": layer.mlp.up, "down": layer.mlp.down}
                first = self.model.config.d_attn * "qkv".index(target[-1]) if matrix == "qkv" else 0
                yield linear[matrix], self._hook(rows + first, columns, block, self.means[source][columns])

    def _hook(self, rows: Tensor, columns: Tensor, weight: Tensor, mean: Tensor) -> Callable[..., Tensor]:
        def correct(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            own, donor = self._parts(inputs[0][..., columns])
            change = (self._held(donor, mean) - own) @ weight.T
            return output.index_add(-1, rows, torch.cat([change.flatten(0, 1), torch.zeros_like(change[0])]))

        return correct
