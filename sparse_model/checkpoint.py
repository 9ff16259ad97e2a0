"""Checkpoints of a training run: whole or absent, the newest readable one wins."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

Metrics = dict[str, float]


class CheckpointStore(Protocol):
    """Where a run keeps its state; `LocalCheckpoints` is a folder, and a cluster brings its own."""

    def restore(self, load: Callable[[Path], None]) -> bool:
        """Call `load` on the newest checkpoint folder that it can read; False where there is none."""

    def save(self, step: int, metrics: Metrics, write: Callable[[Path], None]) -> None:
        """Have `write` fill a folder and keep it as the checkpoint of `step`. Called on every rank at the same step."""


class LocalCheckpoints:
    """Checkpoints in a local folder, written beside and renamed when whole; the last `keep` stay."""

    def __init__(self, folder: Path, keep: int = 2, rank: int = 0) -> None:
        self.folder, self.keep, self.rank = folder, keep, rank

    def restore(self, load: Callable[[Path], None]) -> bool:
        for path in reversed(self._paths()):
            try:
                load(path)
                return True
            except Exception as error:  # whatever a damaged file raises: the one before it is as good
                warnings.warn(f"checkpoint {path} cannot be read ({error}); trying the one before", stacklevel=2)
        return False

    def save(self, step: int, metrics: Metrics, write: Callable[[Path], None]) -> None:
        if self.rank:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=self.folder))
        write(unfinished)
        target = self.folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
        for old in self._paths()[: -self.keep]:
            shutil.rmtree(old)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


class NoCheckpoints:
    """A run that keeps nothing."""

    def restore(self, load: Callable[[Path], None]) -> bool:
        return False

    def save(self, step: int, metrics: Metrics, write: Callable[[Path], None]) -> None:
        pass
