"""Checkpoints of a training run: every worker writes what it holds; whole or absent; the newest readable one wins.

Tensors are stored by `torch.distributed.checkpoint`, so a run continues with another number of workers, sharded or not.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from sparse_model import storage
from sparse_model.distributed.workers import from_first, gathered, rank, world_size
from sparse_model.errors import InputError
from sparse_model.storage.store_errors import StorageFailed, StorageUnavailable
from sparse_model.training.checkpoint_folder import CHECKPOINT_MANIFEST, checkpoint_names, is_whole

RunState = dict[str, Any]
Tensors = dict[str, Tensor]
Take = Callable[[RunState, Callable[[Tensors], None]], None]
CheckpointManifest = dict[str, Any]
Files = Callable[[str], Path]
T = TypeVar("T")

METADATA = ".metadata"
"""Where torch says which tensors there are."""


class OtherRun(InputError):
    """A checkpoint is whole, but another run's: neither is it continued, nor are others saved in its place."""


class CheckpointStore(Protocol):
    """Where a run keeps its state. Every worker calls both methods alike."""

    def restore(self, take: Take) -> bool:
        """Call `take(progress, read)` for the newest checkpoint that can be read; False where there is none.

        `read(tensors)` fills the named tensors in place; if it fails their content is undefined. `take` raises OtherRun
        for a checkpoint that it does not want, which ends the search.
        """

    def save(self, step: int, progress: RunState, tensors: Tensors) -> None:
        """Keep the state after `step` steps: worker 0's progress, which JSON can hold, and the tensors of all."""


class NoCheckpoints:
    """A run that keeps nothing."""

    def restore(self, take: Take) -> bool:
        return False

    def save(self, step: int, progress: RunState, tensors: Tensors) -> None:
        pass


class Checkpoints:
    """Checkpoints below a folder or fsspec URI that all workers reach; the last `keep` stay.

    Each is a folder `step-<step>-<token>`, complete once it has its manifest: written last, it holds the progress, and
    size and hash of every file. `warn` is told, on every worker, of a checkpoint that cannot be read.
    """

    def __init__(self, uri: storage.PathOrURI, keep: int = 2, warn: Callable[[str], None] = warnings.warn) -> None:
        self.uri, self.keep, self.warn = storage.as_uri(uri), keep, warn

    def restore(self, take: Take) -> bool:
        for name in self._complete():
            problem = self._restore_one(name, take)
            if not problem:
                return True
            self.warn(f"checkpoint {storage.join(self.uri, name)} cannot be read ({problem}); trying the one before")
        return False

    def save(self, step: int, progress: RunState, tensors: Tensors) -> None:
        """Raises StorageFailed, on every worker, if the checkpoint cannot be kept; the ones before it stay.

        StorageUnavailable where the store is down; what was written then is dropped after a later checkpoint.
        """
        name = from_first(f"step-{step:08d}-{uuid.uuid4().hex[:8]}")
        files, problem = _on_all(lambda: self._write(name, tensors))
        if not problem:
            manifest = {"files": {k: v for part in files for k, v in part.items()}, "progress": progress}
            _, problem = _on_all(lambda: self._commit(name, manifest) if rank() == 0 else None)
        if problem:
            _on_all(
                lambda: storage.remove(storage.join(self.uri, name)) if rank() == 0 else None
            )  # room on a full disk
            raise StorageFailed(f"storage: cannot keep a checkpoint of step {step} in {self.uri}: {problem}")
        _, problem = _on_all(lambda: self._remove_old(name) if rank() == 0 else None)
        if problem:
            self.warn(f"old checkpoints in {self.uri} stay: {problem}")

    def _complete(self) -> list[str]:
        """Names of the checkpoints that have a manifest, newest first; the same on every worker."""
        names, problem = _on_all(lambda: list(filter(self._has_manifest, self._listed())) if rank() == 0 else [])
        if problem:
            raise InputError(f"storage: {problem}")
        return names[0][::-1]

    def _listed(self) -> list[str]:
        return checkpoint_names(self.uri)

    def _has_manifest(self, name: str) -> bool:
        return is_whole(self.uri, name)

    def _restore_one(self, name: str, take: Take) -> str:
        """What is wrong with this checkpoint; nothing if it was taken."""
        manifests, problem = _on_all(lambda: self._manifest(name) if rank() == 0 else {})
        if not problem:
            try:
                _, problem = _on_all(lambda: self._take(name, manifests[0], take))
            except OtherRun as error:
                raise OtherRun(f"checkpoints: {storage.join(self.uri, name)} is of another run: {error}") from None
        return problem

    def _manifest(self, name: str) -> CheckpointManifest:
        manifest: CheckpointManifest = json.loads(storage.read_bytes(storage.join(self.uri, name, CHECKPOINT_MANIFEST)))
        return {"files": manifest["files"], "progress": manifest["progress"]}

    def _take(self, name: str, manifest: CheckpointManifest, take: Take) -> None:
        with self._fetched(name, manifest) as files:

            def read(tensors: Tensors) -> None:
                files(METADATA)  # where it is damaged, torch looks for another and tells of that at length
                with _alone_without_warning():
                    load_tensors(tensors, storage_reader=_Reader(files), no_dist=world_size() == 1)

            take(manifest["progress"], read)

    @contextmanager
    def _fetched(self, name: str, manifest: CheckpointManifest) -> Iterator[Files]:
        """The checkpoint's files by name, each copied here if it lies elsewhere, and checked, when first asked for."""
        checked: dict[str, Path] = {}
        with tempfile.TemporaryDirectory() as folder:

            def files(file: str) -> Path:
                if file not in checked:
                    path = self._local(name) / file if storage.is_local(self.uri) else Path(folder) / file
                    if not storage.is_local(self.uri):
                        storage.download(storage.join(self.uri, name, file), path)
                    if _described(path) != manifest["files"].get(file):
                        raise InputError(f"{file} is damaged")
                    checked[file] = path
                return checked[file]

            yield files

    def _write(self, name: str, tensors: Tensors) -> CheckpointManifest:
        """Write this worker's part to where it belongs; gives size and hash of its files."""
        with tempfile.TemporaryDirectory() as elsewhere:
            folder = self._local(name) if storage.is_local(self.uri) else Path(elsewhere)
            with _alone_without_warning():
                save_tensors(tensors, storage_writer=FileSystemWriter(folder), no_dist=world_size() == 1)
            own = [*folder.glob(f"__{rank()}_*"), *([folder / METADATA] if rank() == 0 else [])]
            if not storage.is_local(self.uri):
                for path in own:
                    storage.upload(path, storage.join(self.uri, name, path.name))
            return {path.name: _described(path) for path in own}

    def _commit(self, name: str, manifest: CheckpointManifest) -> None:
        for file in manifest["files"]:
            if not storage.exists(storage.join(self.uri, name, file)):
                raise InputError(f"{file} of another worker is not there: all workers must share the storage")
        storage.write_bytes_atomic(storage.join(self.uri, name, CHECKPOINT_MANIFEST), json.dumps(manifest).encode())

    def _remove_old(self, name: str) -> None:
        """Drop all but the newest: what is later than `name` was damaged or never completed, else it were continued."""
        earlier = [other for other in self._listed() if other[:13] < name[:13] and self._has_manifest(other)]
        kept = {name, *earlier[len(earlier) - self.keep + 1 :]}
        for other in self._listed():
            if other not in kept:
                storage.remove(storage.join(self.uri, other))

    def _local(self, name: str) -> Path:
        return Path(storage.filesystem(self.uri)[1]) / name


class _Reader(FileSystemReader):
    """Reads the files of a checkpoint from wherever `files` says they are."""

    def __init__(self, files: Files) -> None:
        super().__init__("")
        self.fs = _CheckedFiles(files)


class _CheckedFiles(FileSystem):
    def __init__(self, files: Files) -> None:
        self.files = files

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[IO[bytes]]:  # type: ignore[override]
        with self.files(Path(path).name).open("rb") as stream:
            yield stream


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as opened:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _on_all(action: Callable[[], T]) -> tuple[list[T], str]:
    """What the action gives on every worker, and what went wrong on the first where something did ('' if nothing).

    No worker goes on before all know, so that none waits for one that has given up. Raises on all what one was told of
    another run, and StorageUnavailable where the store is down for one: nothing is wrong with a checkpoint then.
    """
    values: list[T] = []
    problem, other, down = "", False, False
    try:
        values = [action()]
    except (Exception, CheckpointException) as error:  # whatever a damaged file or a lost disk raises
        cause = _first_cause(error)
        problem, other, down = _one_line(cause), isinstance(cause, OtherRun), isinstance(cause, StorageUnavailable)
    outcomes = gathered((values, problem, other, down))
    for _, problem, other, down in outcomes:
        if other:
            raise OtherRun(problem)
        if down:
            raise StorageUnavailable(f"storage: {problem}")
    return [value for own, *_ in outcomes for value in own], next((text for _, text, *_ in outcomes if text), "")


def _first_cause(error: BaseException) -> BaseException:
    while isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, InputError):
        return error
    # torch's writer fails again as it closes the file of a full disk
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause or error


def _one_line(error: BaseException) -> str:
    text = str(error).removeprefix("storage: ") if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


@contextmanager
def _alone_without_warning() -> Iterator[None]:
    """A single process is no mistake."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
