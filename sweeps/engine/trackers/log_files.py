"""Files that trackers write as a study runs, below its `logs`: where it lies in a store, copied there as they grow."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ray import tune

from sparse_model import storage
from sparse_model.errors import InputError
from sweeps.study.study import Study

TRACKER_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""What each of `Study.callbacks` imports; the extra of that name installs it."""

COPY_SECONDS = 60.0
"""Between two copies of what has changed."""


def check_trackers(study: Study) -> None:
    """InputError for a tracker that is not installed."""
    for name in study.callbacks:
        if importlib.util.find_spec(TRACKER_PACKAGES[name]) is None:
            install = f"pip install 'circuit-sweeps[{name}]'"
            raise InputError(f"callbacks: {name}: {TRACKER_PACKAGES[name]} is not installed; {install}")


class LogFiles(tune.Callback):  # type: ignore[misc]
    """The folder of a study's logs on this machine, for as long as the context lasts."""

    def __init__(self, study: Study, say: Callable[[str], None]) -> None:
        self._uri, self._say = storage.join(study.root, "logs"), say
        self._elsewhere: tempfile.TemporaryDirectory[str] | None = None
        self._copied: dict[Path, tuple[int, int]] = {}
        self._next = 0.0

    @property
    def folder(self) -> Path:
        """Where trackers write."""
        if self._elsewhere is not None:
            return Path(self._elsewhere.name)
        return Path(storage.filesystem(self._uri)[1])

    def __enter__(self) -> Self:
        if not storage.is_local(self._uri):
            self._elsewhere = tempfile.TemporaryDirectory(prefix="circuit-sweeps-logs-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.copy()
        if self._elsewhere is not None:
            self._elsewhere.cleanup()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune stores its callbacks beside its state, from which we never restore."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._elsewhere is not None and time.monotonic() >= self._next:
            self.copy()
            self._next = time.monotonic() + COPY_SECONDS

    def copy(self) -> None:
        """Copy what has changed since. Results are complete without it: what goes wrong is only said."""
        if self._elsewhere is None:
            return
        for path in sorted(self.folder.rglob("*")):
            if not path.is_file():
                continue
            state = path.stat()
            mark = state.st_size, state.st_mtime_ns
            if self._copied.get(path) == mark:
                continue
            try:
                storage.upload(path, storage.join(self._uri, *path.relative_to(self.folder).parts))
            except InputError as error:
                self._say(f"logs are not copied ({error})")
                return
            self._copied[path] = mark
