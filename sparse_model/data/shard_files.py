"""Where the shards of a dataset are read from: its own folder on disk, or a bounded local cache of an object store.

The cache is shared by all processes of a machine and by all datasets. A shard is copied when it is first needed, by one
process while the others wait for it; those used longest ago make room. Locks are `flock`s: they end with their process.
"""

import fcntl
import hashlib
import os
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt

from sparse_model.data.manifest import File, Shard
from sparse_model.errors import InputError
from sparse_model.storage.files import filesystem, join
from sparse_model.storage.store_errors import persistently, refusing

Tokens = npt.NDArray[np.uint16]

CACHE_BYTES = 20_000_000_000
DOWNLOADS = 4
"""Shards copied ahead at a time."""
STRIPES = 64
"""Lock files; a shard's is chosen by its name."""
WAIT_SECONDS = 0.05
PARTIAL = ".part"


class ShardFiles(Protocol):
    """Opens the shards of one dataset."""

    def open(self, shard: Shard) -> Tokens:
        """The tokens, memory-mapped. Raises InputError for a shard that is missing or damaged."""
        ...

    def expect(self, groups: Sequence[Sequence[Shard]]) -> None:
        """Be told which shards are needed now and which soon."""
        ...


class LocalShards:
    """Shards in a folder of this machine."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        """Raises InputError if a file is missing or of another size."""
        self._folder = folder
        for shard in shards:
            path = folder / shard.name
            if not path.is_file():
                raise InputError(f"shard {path} is missing")
            if path.stat().st_size != shard.bytes:
                raise InputError(f"shard {path} is damaged: {path.stat().st_size} bytes, not {shard.bytes}")

    def open(self, shard: Shard) -> Tokens:
        path = self._folder / shard.name
        try:
            return _mapped(path, shard)
        except FileNotFoundError:
            raise InputError(f"shard {path} is missing") from None

    def expect(self, groups: Sequence[Sequence[Shard]]) -> None:
        pass


class CachedShards:
    """Shards of a dataset in a store, through a folder that never holds more than `max_bytes` of them.

    A shard that is open when it makes room keeps its place on disk until it is closed.
    """

    def __init__(self, uri: str, key: str, cache: Path, max_bytes: int) -> None:
        self._uri, self._folder, self._cache, self._max_bytes = uri, cache / key, cache, max_bytes
        self._ahead: deque[Shard] = deque()
        self._threads: list[threading.Thread] = []

    def open(self, shard: Shard) -> Tokens:
        path = self._folder / shard.name
        while True:
            self._fetch(shard)
            try:
                os.utime(path)  # the time it was last used
                return _mapped(path, shard)
            except FileNotFoundError:  # it made room for another process's shard in this instant
                continue

    def expect(self, groups: Sequence[Sequence[Shard]]) -> None:
        """Copy the groups ahead in the background, as many of them as the cache has room for together."""
        ahead: dict[str, Shard] = {}
        for group in groups:
            more = ahead | {shard.name: shard for shard in group}
            if sum(shard.bytes for shard in more.values()) > self._max_bytes:
                break
            ahead = more
        self._ahead = deque(ahead.values())
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in range(min(DOWNLOADS - len(self._threads), len(self._ahead))):
            thread = threading.Thread(target=self._copy_ahead, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _copy_ahead(self) -> None:
        while True:
            try:
                self._fetch(self._ahead.popleft())
            except IndexError:
                return
            except InputError:
                continue  # refused again, and then heard, when it is opened

    def _fetch(self, shard: Shard) -> None:
        """Have the whole, checked shard in the folder."""
        target = self._folder / shard.name
        if _is_whole(target, shard):
            return
        self._refuse_too_large(shard)
        with refusing("copy", f"{join(self._uri, shard.name)} to {target}"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with _locked(self._stripe(target)):
                if not _is_whole(target, shard):  # nobody copied it while we waited
                    self._download(shard, target)

    def _download(self, shard: Shard, target: Path) -> None:
        partial = target.with_name(f".{shard.name}.{shard.bytes}{PARTIAL}")
        partial.unlink(missing_ok=True)  # of a process that was killed: we hold the shard's lock
        try:
            with self._reserved(partial, shard.bytes):
                uri = join(self._uri, shard.name)
                persistently("copy", uri, lambda: download_checked(uri, shard, partial))
                os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def _reserved(self, partial: Path, wanted: int) -> Iterator[None]:
        """Room for `wanted` bytes, made by what was used longest ago: a file that counts as much while it is locked."""
        while True:
            with _locked(self._cache / ".lock"):
                held, files = self._inventory()
                for _, size, path in sorted(files):
                    if held + wanted <= self._max_bytes:
                        break
                    path.unlink(missing_ok=True)
                    held -= size
                reservation = _lock(partial) if held + wanted <= self._max_bytes else None
            if reservation is not None:
                break
            time.sleep(WAIT_SECONDS)  # until others, who are copying, have shards that can make room
        with reservation:
            yield

    def _inventory(self) -> tuple[int, list[tuple[float, int, Path]]]:
        """Bytes in the cache, reserved ones included, and (time of last use, size, path) of what can make room."""
        held, files = 0, []
        for partial in self._cache.glob(f"*/.*{PARTIAL}"):
            if _is_locked(partial):
                held += int(partial.name.removesuffix(PARTIAL).rsplit(".", 1)[1])
            else:
                partial.unlink(missing_ok=True)  # whoever was copying it was killed
        for path in self._cache.glob("*/*.npy"):
            state = path.stat()
            held += state.st_size
            files.append((state.st_mtime, state.st_size, path))
        return held, files

    def _stripe(self, target: Path) -> Path:
        return self._cache / f".lock-{zlib.crc32(f'{target.parent.name}/{target.name}'.encode()) % STRIPES:02d}"

    def _refuse_too_large(self, shard: Shard) -> None:
        if shard.bytes > self._max_bytes:
            raise InputError(
                f"cache_bytes: {self._max_bytes} is less than shard {shard.name} of {self._uri}: "
                f"allowed is {shard.bytes} and more"
            )


def default_cache() -> Path:
    """A folder of the user's below the system's temporary one."""
    return Path(tempfile.gettempdir()) / f"circuit-sweeps-{os.getuid()}"


def download_checked(uri: str, file: File, target: Path) -> None:
    """Copy a file of a dataset; raises InputError if it cannot be read or is not what the manifest says."""
    fs, path = filesystem(uri)
    with refusing("copy", f"{uri} to {target.parent}"):
        fs.get_file(path, str(target))
        with open(target, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != file.sha256:
        raise InputError(f"{uri} is damaged: its sha256 is {found}, the manifest says {file.sha256}")


def _is_whole(path: Path, file: File) -> bool:
    try:
        return path.stat().st_size == file.bytes
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with _lock(path):
        yield


def _lock(path: Path) -> IO[str]:
    """The file, made if need be and locked until it is closed."""
    file = open(path, "a")  # noqa: SIM115  (the caller's to close)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _is_locked(path: Path) -> bool:
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # just finished
        pass
    return False


def _mapped(path: Path, shard: Shard) -> Tokens:
    try:
        tokens: Tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"shard {path} is damaged: {error}") from error
    if tokens.dtype != np.uint16 or tokens.shape != (shard.tokens,):
        raise InputError(f"shard {path} holds {tokens.shape} {tokens.dtype}, not ({shard.tokens},) uint16")
    return tokens
