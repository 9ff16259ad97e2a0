"""The batches of a run on its device, each on its way there a step before it is asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Read = Callable[[int], npt.NDArray[np.int64]]


class Batches:
    """This worker's rows of the batch of every step, as `read` gives them for a step."""

    def __init__(self, read: Read, device: torch.device) -> None:
        self._read, self._device = read, device
        self._ahead: tuple[int, Tensor] | None = None

    def take(self, step: int) -> Tensor:
        """The batch of a step (B, T + 1), in the memory of the device."""
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead is not None and ahead[0] == step else self._send(step)

    def prepare(self, step: int) -> None:
        """Read the batch of a step and send it on, while the device is busy; on a CPU there is nothing to gain."""
        if self._device.type != "cpu":
            self._ahead = step, self._send(step)

    def _send(self, step: int) -> Tensor:
        rows = torch.from_numpy(self._read(step))
        if self._device.type == "cuda" and torch.cuda.is_available():
            rows = rows.pin_memory()  # from ordinary memory a copy waits for the device
        return rows.to(self._device, non_blocking=True)
