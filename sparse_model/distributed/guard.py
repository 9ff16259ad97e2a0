"""A worker of a sharded model that runs out of memory stays in step with the others until all can begin anew.

Weights are gathered and gradients sent between pieces of computing: one layer, or what comes before or after all. A
worker that stopped in one would leave the others waiting for its part of the next. So a piece that fails gives zeros,
which take no memory, all further ones compute nothing, forward or backward, and the worker comes to the end of its
pass having sent what it had to. What it sent is worth nothing, and `failed` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparse_model.model.transformer import SparseTransformer

_T = TypeVar("_T")
Like = tuple[torch.Size, torch.dtype, torch.device]
"""What a tensor of zeros is to be like."""

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class Guard:
    """Watches over the passes of a sharded model, whose functions it puts itself around."""

    def __init__(self, model: SparseTransformer) -> None:
        self.failed = False
        self._model, self._watching = model, False
        self._kept: list[_Kept] = []
        self._stream: Tensor | None = None
        self._layers_done = 0
        # what a layer computes can be compiled, and not that it is watched
        around = torch.compiler.disable(self._layer, recursive=False)  # type: ignore[no-untyped-call]
        for layer in model.layers:
            setattr(layer, "forward", partial(around, layer))  # noqa: B010
        setattr(model, "forward", partial(self._whole, model))  # noqa: B010
        setattr(model, "embedded", self._embedded)  # noqa: B010
        setattr(model, "loss_of", self._loss_of)  # noqa: B010

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it lasts, running out of memory in a forward or backward pass sets `failed` instead of raising.

        Not covered are the buffers in which weights are gathered and gradients sent.
        """
        self.failed, self._watching = False, True
        try:
            yield
        finally:
            self._watching, self._stream = False, None
            self._kept.clear()

    def attempt(self, compute: Callable[[], _T]) -> _T | None:
        """What a piece computes, or None where memory runs out or has before."""
        if self.failed:
            return None
        try:
            return compute()
        except OUT_OF_MEMORY:
            pass  # and let go of what the error holds before anything else
        self._fail()
        return None

    def _fail(self) -> None:
        self.failed = True
        for kept in self._kept:
            kept.drop()

    def _whole(self, model: SparseTransformer, *args: Any, **options: Any) -> Tensor:
        forward = partial(type(model).forward, model, *args, **options)
        if not self._watching:
            return forward()
        self._kept.clear()
        self._stream, self._layers_done = None, 0
        loss = self.attempt(forward) if not self.failed else None
        return self._without_computing(args[0]) if loss is None else loss

    def _without_computing(self, tokens: Tensor) -> Tensor:
        """A loss of zero by way of all layers, of those too that an error between two pieces left out."""
        model, stream = self._model, self._stream
        if stream is None:
            stream = self._embedded(tokens)
        for layer in list(model.layers)[self._layers_done :]:
            stream = layer(stream, None, model.compute_dtype, None)
        return self._piece(torch.sum, [stream], self._own(), self._like())

    def _layer(self, layer: nn.Module, x: Tensor, positions: Tensor | None, *options: Any) -> Tensor:
        def compute(x: Tensor, positions: Tensor | None = None) -> Tensor:
            result: Tensor = type(layer).forward(layer, x, positions, *options)
            return result

        if not self._watching:
            return compute(x, positions)
        inputs = [x] if positions is None else [x, positions]
        self._stream = self._piece(compute, inputs, list(layer.parameters()), self._like(*x.shape))
        self._layers_done += 1
        return self._stream

    def _embedded(self, tokens: Tensor) -> Tensor:
        model = self._model
        compute = partial(type(model).embedded, model, tokens)
        if not self._watching:
            return compute()
        read = [model.embedding]
        if model.positions is not None and model.config.positions == "learned":
            read.append(model.positions)
        self._stream = self._piece(compute, [], read, self._like(*tokens.shape, model.config.d_model))
        return self._stream

    def _loss_of(self, stream: Tensor, *options: Any) -> Tensor:
        def compute(stream: Tensor) -> Tensor:
            return type(self._model).loss_of(self._model, stream, *options)

        if not self._watching:
            return compute(stream)
        return self._piece(compute, [stream], self._own(), self._like())

    def _like(self, *shape: int) -> Like:
        """The residual stream and the loss are of the weights' type."""
        return torch.Size(shape), torch.float32, self._model.embedding.device

    def _own(self) -> list[nn.Parameter]:
        """The model's parameters that are not in a layer: they are gathered together."""
        return [p for name, p in self._model.named_parameters() if not name.startswith("layers.")]

    def _piece(
        self, compute: Callable[..., Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor], like: Like
    ) -> Tensor:
        kept = _Kept()
        self._kept.append(kept)
        result: Tensor = _Piece.apply(self, kept, compute, len(inputs), like, *inputs, *weights)  # type: ignore[no-untyped-call]
        return result


@dataclass
class _Kept:
    """What the backward pass of a piece needs: its result, with the graph behind it, and what that began with."""

    result: Tensor | None = None
    leaves: tuple[Tensor, ...] = ()

    def drop(self) -> None:
        self.result, self.leaves = None, ()


class _Piece(torch.autograd.Function):
    """A piece of computing as one function, whose gradients are zeros where memory ran out.

    `tensors` are its inputs and then the weights that it reads by itself; its result is like `like`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        guard: Guard,
        kept: _Kept,
        compute: Callable[..., Tensor],
        n_inputs: int,
        like: Like,
        *tensors: Tensor,
    ) -> Tensor:
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in tensors[:n_inputs]]
        with torch.enable_grad():
            result = guard.attempt(lambda: compute(*inputs))
        ctx.guard, ctx.kept = guard, kept
        ctx.inputs = [(t.shape, t.dtype, t.device) if t.requires_grad else None for t in tensors]
        if result is None:
            return _zeros(*like)
        kept.result, kept.leaves = result, (*inputs, *tensors[n_inputs:])
        return result.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        result, leaves = ctx.kept.result, [leaf for leaf in ctx.kept.leaves if leaf.requires_grad]

        def compute() -> tuple[Tensor, ...]:
            return torch.autograd.grad(result, leaves, upstream, materialize_grads=True)

        found = ctx.guard.attempt(compute) if result is not None else None
        ctx.kept.drop()
        gradients = iter(found or [_zeros(*like) for like in ctx.inputs if like is not None])
        return (*[None] * 5, *(None if like is None else next(gradients) for like in ctx.inputs))


def _zeros(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take the memory of one. No view, which would have FSDP warn."""
    one = torch.zeros(1, dtype=dtype, device=device)
    return torch.empty(0, dtype=dtype, device=device).set_(one.untyped_storage(), 0, shape, (0,) * len(shape))
