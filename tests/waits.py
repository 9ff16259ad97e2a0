"""Counts operations for whose result, or its size, a program waits for its device: on a CPU they are the same ones."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_static", "argwhere",
    "masked_select", "bincount", "unique", "unique_dim", "unique_consecutive", "_unique", "_unique2",
    "repeat_interleave", "histogram", "_linalg_check_errors",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """While it is active, `seen` grows by the name of every such operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype.itemsize == 1 for index in args[1]
        )
        if name in WAITS or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))
