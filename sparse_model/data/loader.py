"""Batches of token windows from a prepared dataset, as a pure function of seed and step.

Shapes: B batch, T context. A window holds T + 1 tokens: inputs are its first T, targets its last T. Windows start
every T tokens within a shard, so each token is a target once per epoch (the first and up to T last of a shard
never are).
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from sparse_model.data.corpora import SPLITS, Split
from sparse_model.data.manifest import Manifest, read_manifest
from sparse_model.data.order import GROUP_SHARDS, WindowNumbers, WindowOrder
from sparse_model.data.recent import Recent
from sparse_model.data.shard_files import CACHE_BYTES, CachedShards, LocalShards, ShardFiles, Tokens, default_cache
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.storage.files import filesystem, is_local, join, read_bytes
from sparse_model.storage.paths import PathOrURI, as_uri

TOKENIZER_FILE = "tokenizer.json"


class TokenDataset:
    """Tokens of both splits, of which only the shards in use are open."""

    def __init__(self, uri: str, manifest: Manifest, files: ShardFiles) -> None:
        """A dataset whose shards `files` opens; use `open` for one at a URI."""
        self.uri = uri
        self.manifest = manifest
        self.tokenizer = _tokenizer(uri, manifest)
        self._files = files
        self._counts = Recent[tuple[Split, int], WindowNumbers](4)
        self._open = Recent[str, Tokens](2 * GROUP_SHARDS)
        self._orders = Recent[tuple[Split, int, int], WindowOrder](2)
        self._expected: dict[Split, tuple[int, int, int, int]] = {}

    @classmethod
    def open(cls, uri: PathOrURI, cache_dir: str | Path | None = None, cache_bytes: int = CACHE_BYTES) -> Self:
        """Open the dataset folder at `uri`.

        Shards in an object store are copied when they are needed, checked against their hashes, to `cache_dir`
        (default: a folder of the user's below the system's temporary one), which holds at most `cache_bytes` of
        them. Batches do not depend on that; but below twice the size of GROUP_SHARDS shards nothing is copied ahead,
        and below once that size shards are copied over and over. Raises InputError for a dataset that is missing,
        incomplete or damaged.
        """
        uri = as_uri(uri)
        manifest = read_manifest(uri)
        if is_local(uri):
            shards = [shard for split in SPLITS for shard in manifest.split(split).shards]
            return cls(uri, manifest, LocalShards(Path(filesystem(uri)[1]), shards))
        folder = default_cache() if cache_dir is None else Path(cache_dir)
        return cls(uri, manifest, CachedShards(uri, manifest.key, folder, cache_bytes))

    def n_tokens(self, split: Split) -> int:
        """Number of tokens of a split, document separators included."""
        return self.manifest.split(split).tokens

    def n_windows(self, split: Split, context: int) -> int:
        """Number of windows of `context` + 1 tokens, that is of samples in an epoch."""
        return int(self._windows(split, context).sum())

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

        Every epoch visits all windows in a new order (`WindowOrder`) drawn from (seed, epoch); a batch may span two
        epochs. Nothing is remembered between calls, so a run resumes at any step with any number of workers. Raises
        InputError if the split is shorter than one window, B is no multiple of `world`, or a shard cannot be read.
        """
        assert step >= 0
        assert 0 <= rank < world
        if batch_size % world != 0:
            raise InputError(f"batch_size: {batch_size} is not a multiple of the {world} workers")
        self._require_windows(split, context)
        windows = self._windows(split, context)
        order = self._orders.get((split, context, seed), lambda: WindowOrder(windows, seed))
        self._expect(split, context, seed, order, last=(step + 1) * batch_size - 1)
        samples = np.arange(step * batch_size + rank, (step + 1) * batch_size, world)
        return self._gather(split, order.at(samples), context)

    def heldout_batches(
        self, batch_size: int, context: int, max_tokens: int | None = None
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Held-out windows (≤ B, T + 1) in the order of the text, the last batch perhaps partial.

        Stops before more than `max_tokens` targets (one window at least); none = all.
        """
        total = self._require_windows("heldout", context)
        if max_tokens is not None:
            total = min(total, max(1, max_tokens // context))
        ends = np.cumsum(self._windows("heldout", context))
        for start in range(0, total, batch_size):
            windows = np.arange(start, min(start + batch_size, total))
            shards = np.searchsorted(ends, windows, side="right")
            before = np.concatenate([[0], ends])[shards]
            yield self._gather("heldout", np.stack([shards, windows - before], axis=1), context)

    def _windows(self, split: Split, context: int) -> WindowNumbers:
        """Windows in each shard."""
        shards = self.manifest.split(split).shards
        return self._counts.get((split, context), lambda: np.array([(shard.tokens - 1) // context for shard in shards]))

    def _require_windows(self, split: Split, context: int) -> int:
        total = self.n_windows(split, context)
        if total == 0:
            raise InputError(
                f"context: {context} is too long for the {split} split of {self.n_tokens(split)} tokens: "
                "allowed is fewer than the tokens of a shard"
            )
        return total

    def _expect(self, split: Split, context: int, seed: int, order: WindowOrder, last: int) -> None:
        """Let shards be copied ahead when sample `last` enters another group of them."""
        epoch, group = order.group_of(last)
        if self._expected.get(split) != (context, seed, epoch, group):
            self._expected[split] = (context, seed, epoch, group)
            shards = self.manifest.split(split).shards
            self._files.expect([[shards[i] for i in ids] for ids in order.shards_from(epoch, group)])

    def _gather(self, split: Split, windows: WindowNumbers, context: int) -> npt.NDArray[np.int64]:
        """The rows of (shard, window) pairs."""
        shards = self.manifest.split(split).shards
        rows = np.empty((len(windows), context + 1), dtype=np.int64)
        for row, (index, window) in zip(rows, windows.tolist(), strict=True):
            tokens = self._open.get(shards[index].name, partial(self._files.open, shards[index]))
            row[:] = tokens[window * context : (window + 1) * context + 1]
        return rows


def _tokenizer(uri: str, manifest: Manifest) -> Tokenizer:
    where = join(uri, manifest.tokenizer.name)
    content = read_bytes(where)
    if hashlib.sha256(content).hexdigest() != manifest.tokenizer.sha256:
        raise InputError(f"{where} is damaged: its sha256 is not the manifest's")
    return Tokenizer.from_json(content.decode("utf-8"))
