"""Batches of token windows from a prepared dataset, as a pure function of seed and step.

Shapes: B batch, T context. A window holds T + 1 tokens: inputs are its first T, targets its last T. Windows start
every T tokens within a shard, so each token is a target once per epoch (the first and up to T last of a shard
never are).
"""

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from sparse_model.data.corpora import SPLITS, Split
from sparse_model.data.manifest import File, Manifest, Shard, read_manifest
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.storage import download, filesystem, is_local, join

TOKENIZER_FILE = "tokenizer.json"


class TokenDataset:
    """Tokens of both splits, memory-mapped from local files."""

    def __init__(self, uri: str, manifest: Manifest, folder: Path) -> None:
        """A dataset whose files all lie in `folder`; use `open` for one in any store."""
        self.uri = uri
        self.manifest = manifest
        self.tokenizer = Tokenizer.load(folder / manifest.tokenizer.name)
        self._shards: dict[Split, list[npt.NDArray[np.uint16]]] = {
            split: [_mapped(folder / shard.name, shard) for shard in manifest.split(split).shards] for split in SPLITS
        }
        self._orders: dict[tuple[Split, int, int, int], npt.NDArray[np.int64]] = {}

    @classmethod
    def open(cls, uri: str, cache_dir: str | Path | None = None) -> Self:
        """Open the dataset folder at `uri`.

        Files in an object store are copied once to `cache_dir` (default: a folder of the user's below the system's
        temporary one) and checked against their hashes. Raises InputError for a dataset that is missing,
        incomplete or damaged.
        """
        manifest = read_manifest(uri)
        if is_local(uri):
            return cls(uri, manifest, Path(filesystem(uri)[1]))
        folder = Path(cache_dir) if cache_dir is not None else _default_cache()
        return cls(uri, manifest, _local_copy(uri, manifest, folder / manifest.key))

    def n_tokens(self, split: Split) -> int:
        """Number of tokens of a split, document separators included."""
        return self.manifest.split(split).tokens

    def n_windows(self, split: Split, context: int) -> int:
        """Number of windows of `context` + 1 tokens, that is of samples in an epoch."""
        return sum(_windows_in(shard, context) for shard in self._shards[split])

    def batch(
        self,
        split: Split,
        step: int,
        *,
        batch_size: int,
        context: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> npt.NDArray[np.int64]:
        """Windows (B / world, T + 1) of step `step`: rows rank::world of that step's global batch of B.

        Every epoch visits all windows in a new order drawn from (seed, epoch); a batch may span two epochs. Nothing
        is remembered between calls, so a run resumes at any step with any number of workers. Raises InputError if
        the split is shorter than one window or B is no multiple of `world`.
        """
        assert step >= 0
        assert 0 <= rank < world
        if batch_size % world != 0:
            raise InputError(f"batch_size: {batch_size} is not a multiple of the {world} workers")
        total = self._require_windows(split, context)
        samples = np.arange(step * batch_size + rank, (step + 1) * batch_size, world)
        windows = np.array([self._order(split, total, seed, int(n // total))[n % total] for n in samples])
        return self._gather(split, windows, context)

    def heldout_batches(
        self, batch_size: int, context: int, max_tokens: int | None = None
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Held-out windows (≤ B, T + 1) in the order of the text, the last batch perhaps partial.

        Stops before more than `max_tokens` targets (one window at least); none = all.
        """
        total = self._require_windows("heldout", context)
        if max_tokens is not None:
            total = min(total, max(1, max_tokens // context))
        for start in range(0, total, batch_size):
            yield self._gather("heldout", np.arange(start, min(start + batch_size, total)), context)

    def _require_windows(self, split: Split, context: int) -> int:
        total = self.n_windows(split, context)
        if total == 0:
            raise InputError(
                f"context: {context} is too long for the {split} split of {self.n_tokens(split)} tokens: "
                "allowed is fewer than the tokens of a shard"
            )
        return total

    def _order(self, split: Split, total: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        key = (split, total, seed, epoch)
        if key not in self._orders:
            while len(self._orders) >= 2:  # a batch needs two epochs' orders at the most
                self._orders.pop(next(iter(self._orders)))
            self._orders[key] = np.random.default_rng([seed, epoch]).permutation(total)
        return self._orders[key]

    def _gather(self, split: Split, windows: npt.NDArray[np.int64], context: int) -> npt.NDArray[np.int64]:
        shards = self._shards[split]
        ends = np.cumsum([_windows_in(shard, context) for shard in shards])
        rows = np.empty((len(windows), context + 1), dtype=np.int64)
        for row, window in enumerate(windows):
            index = int(np.searchsorted(ends, window, side="right"))
            before = int(ends[index - 1]) if index else 0
            start = (int(window) - before) * context
            rows[row] = shards[index][start : start + context + 1]
        return rows


def _windows_in(shard: npt.NDArray[np.uint16], context: int) -> int:
    return (len(shard) - 1) // context


def _mapped(path: Path, shard: Shard) -> npt.NDArray[np.uint16]:
    try:
        tokens: npt.NDArray[np.uint16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"shard {path} is missing or damaged: {error}") from error
    if tokens.dtype != np.uint16 or tokens.shape != (shard.tokens,):
        raise InputError(f"shard {path} holds {tokens.shape} {tokens.dtype}, not ({shard.tokens},) uint16")
    return tokens


def _local_copy(uri: str, manifest: Manifest, folder: Path) -> Path:
    """Copy what is not yet in `folder`, where only whole and checked files ever appear."""
    for file in (manifest.tokenizer, *manifest.train.shards, *manifest.heldout.shards):
        target = folder / file.name
        if not target.exists() or target.stat().st_size != file.bytes:
            _checked_download(join(uri, file.name), file, target)
    return folder


def _checked_download(uri: str, file: File, target: Path) -> None:
    unchecked = target.with_name(f".unchecked-{uuid.uuid4().hex}")
    download(uri, unchecked)
    with open(unchecked, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != file.sha256:
        unchecked.unlink()
        raise InputError(f"{uri} is damaged: its sha256 is {found}, the manifest says {file.sha256}")
    unchecked.replace(target)


def _default_cache() -> Path:
    return Path(tempfile.gettempdir()) / f"circuit-sweeps-{os.getuid()}"
