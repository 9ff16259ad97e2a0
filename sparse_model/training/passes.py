"""The gradient of a batch in as many forward and backward passes as memory asks for.

Workers of replicas add up their gradients only after all of them have come through: one that runs out of memory in the
middle would leave the others waiting for its part. Those of a sharded model wait for each other in every layer; a
guard has one that runs out of memory go on with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_model.distributed.guard import OUT_OF_MEMORY, Guard
from sparse_model.distributed.workers import Hosts, averaged
from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer


class Passes:
    """Gradients of a batch, `size` sequences of a worker at a time."""

    def __init__(self, model: SparseTransformer, size: int, sharded: bool) -> None:
        self.model, self.size = model, size
        self._guard = Guard(model) if sharded else None
        self._hosts = Hosts()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Leave the gradient of the mean loss of tokens (B, T + 1) in the parameters, averaged over workers.

        Gives this worker's mean loss. Where one worker runs out of memory all start the batch anew, with half as many
        sequences at a time. InputError where not even one fits.
        """
        while True:
            loss = self._tried(tokens)
            if not self._hosts.any(loss is None):
                break
            self._halve()
        assert loss is not None
        if self._guard is None:
            averaged([p.grad for p in self.model.parameters() if p.grad is not None])
        return loss

    def _tried(self, tokens: Tensor) -> Tensor | None:
        """The loss, or None where memory ran out."""
        if self._guard is not None:
            return self._guarded(tokens, self._guard)
        try:
            return self._all(tokens)
        except OUT_OF_MEMORY:
            return None

    def _guarded(self, tokens: Tensor, guard: Guard) -> Tensor | None:
        try:
            with guard.watching():
                loss = self._all(tokens)
        except OUT_OF_MEMORY as error:  # the other workers are waiting for this one's part of a layer
            raise InputError(self._too_much("; allowed: a smaller training.micro_batch")) from error
        return None if guard.failed else loss

    def _all(self, tokens: Tensor) -> Tensor:
        total = torch.zeros((), device=tokens.device)
        for rows in tokens.split(self.size):  # type: ignore[no-untyped-call]
            loss: Tensor = self.model(rows[:, :-1], targets=rows[:, 1:])
            if len(rows) < len(tokens):
                loss = loss * (len(rows) / len(tokens))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _halve(self) -> None:
        """Drop what there is of gradients, and take half as many sequences from now on."""
        if self.size == 1:
            raise InputError(self._too_much("; allowed: a smaller model or context, or another device"))
        for p in self.model.parameters():
            p.grad = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.size = -(-self.size // 2)

    def _too_much(self, remedy: str) -> str:
        return f"micro_batch {self.size}: {self.size} sequences at a time do not fit in the device's memory{remedy}"
