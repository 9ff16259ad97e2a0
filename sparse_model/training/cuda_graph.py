"""A step of training as one CUDA graph: where a model is small, launching its kernels one by one takes the most time.

What is recorded must work on the same memory every time and ask the device nothing; see `SparseOptimizer.update`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

StepWork = Callable[[Tensor], Tensor]

WARM_UP = 3
"""Steps that are taken as they come before one is recorded: kernels are compiled and chosen, and moments made."""


class RecordedWork:
    """Does `work(tokens) -> loss` on a GPU: a few times as it is, then as a graph of the same kernels."""

    def __init__(self, work: StepWork) -> None:
        self._work, self._calls = work, 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """The loss of a batch, which the next call overwrites; batches are of one shape."""
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._aside(tokens)
        if self._graph is None:
            self._tokens, graph = tokens.clone(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._loss = self._work(self._tokens)
            self._graph = graph
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._loss

    def _aside(self, tokens: Tensor) -> Tensor:
        """On a stream of its own, as torch asks of what is recorded later."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            loss = self._work(tokens)
        current.wait_stream(stream)
        return loss
