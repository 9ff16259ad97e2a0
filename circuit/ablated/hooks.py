"""Hooks of modules that last as long as a context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def hooked(hooks: Iterable[tuple[torch.nn.Module, Callable[..., Tensor]]]) -> Iterator[None]:
    """While it lasts, each module's output is what its hook makes of it."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
