"""Prompts as the evaluation wants them: batched by length, each batch no longer than its longest prompt.

Shapes: B prompts of a batch, T its longest prompt, N pairs of a task.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from circuit.tasks import PairBatch
from sparse_model.model.inputs import check_ids, check_tokens
from sparse_model.model.transformer import SparseTransformer

POSITIONS = 2048
"""Positions per evaluation batch: activations of one batch stay in a CPU core's cache (fastest of 512 to 8192)."""


class AnswerBatch(NamedTuple):
    """Prompts (B, T), right-padded; `last` (B,) the answer positions; `right` and `wrong` (B,) answer tokens;
    `sides` (B,) +1 where the right answer's token id is the lower of the two, else -1."""

    tokens: Tensor
    last: Tensor
    right: Tensor
    wrong: Tensor
    sides: Tensor


def check_pairs(model: SparseTransformer, data: PairBatch, what: str) -> None:
    """InputError for prompts or answers that are no tokens of the model's, or are longer than its context."""
    check_tokens(data.tokens, model.config, what=f"{what}: prompts")
    for answers in (data.right, data.wrong):
        check_ids(answers, model.config, f"{what}: answers")


def answer_batch(data: PairBatch, rows: Tensor, device: torch.device) -> AnswerBatch:
    """The given rows of a task's prompts as one batch."""
    length = data.length[rows]
    fields = (
        data.tokens[rows, : int(length.max())],
        length - 1,
        data.right[rows],
        data.wrong[rows],
        torch.where(data.right[rows] < data.wrong[rows], 1.0, -1.0),
    )
    return AnswerBatch(*(field.to(device) for field in fields))


def pair_batch(data: PairBatch, pairs: Tensor, device: torch.device) -> AnswerBatch:
    """Both prompts of the given pairs as one batch."""
    return answer_batch(data, torch.stack([2 * pairs, 2 * pairs + 1], 1).flatten(), device)


def all_batches(data: PairBatch, device: torch.device) -> list[AnswerBatch]:
    """Every prompt once, shortest first, so that little of a batch is padding."""
    order = data.length.argsort(stable=True)
    batches, start = [], 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and int(data.length[order[stop]]) * (stop + 1 - start) <= POSITIONS:
            stop += 1
        batches.append(answer_batch(data, order[start:stop], device))
        start = stop
    return batches
