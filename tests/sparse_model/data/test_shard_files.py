"""Shards through a bounded cache: right, copied once, never more than the bound, whatever dies or fails."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sparse_model import storage
from sparse_model.data import loader, order, shard_files
from sparse_model.data.config import CorpusConfig, SourceConfig, TokenizerConfig
from sparse_model.data.loader import TokenDataset
from sparse_model.data.manifest import File, Shard
from sparse_model.data.processes import in_turn
from sparse_model.data.shard_files import CachedShards, download_checked
from sparse_model.data.shards import prepare
from sparse_model.errors import InputError
from sparse_model.storage import store_errors

CORPUS = CorpusConfig(sources=(SourceConfig(source="idioms", megabytes=0.1),), heldout_fraction=0.1)
STEPS = 150


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """A dataset of a dozen shards."""
    root = str(tmp_path_factory.mktemp("root"))
    return prepare(CORPUS, TokenizerConfig(vocab_size=400), root, execute=in_turn, part_bytes=9_000)


def copied(local: TokenDataset, uri: str) -> str:
    for path in filter(Path.is_file, Path(local.uri).iterdir()):
        storage.write_bytes_atomic(storage.join(uri, path.name), path.read_bytes())
    return uri


@pytest.fixture
def remote(local: TokenDataset, tmp_path: Path) -> str:
    """The same dataset where only copies of it can be read."""
    return copied(local, f"memory://{tmp_path.name}")


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was copied."""
    counts = Counter[str]()

    def counted(uri: str, file: File, target: Path) -> None:
        counts[file.name] += 1
        download_checked(uri, file, target)

    monkeypatch.setattr(shard_files, "download_checked", counted)
    return counts


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_errors, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("SWEEPS_STORAGE_PATIENCE", "1")


def batch(dataset: TokenDataset, step: int, **rest: int) -> list[list[int]]:
    rows: list[list[int]] = dataset.batch("train", step, batch_size=8, context=32, **({"seed": 5} | rest)).tolist()
    return rows


def held(cache: Path) -> int:
    """Bytes of shards in a cache, half-copied ones included; files may vanish while we look."""
    sizes = 0
    for path in [*cache.glob("*/*.npy"), *cache.glob("*/.*")]:
        try:
            sizes += path.stat().st_size
        except FileNotFoundError:
            continue
    return sizes


@contextmanager
def watched(cache: Path) -> Iterator[list[int]]:
    """The sizes that a cache has while the context lasts."""
    seen, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            seen.append(held(cache))

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    stop.set()
    thread.join()


class TestBatches:
    @pytest.mark.parametrize("shards", [1, 4, 7, 100])
    def test_they_are_those_of_a_local_dataset_however_small_the_cache(
        self, local: TokenDataset, remote: str, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Groups of three: a cache of one shard, of a group, of two groups, of all."""
        monkeypatch.setattr(order, "GROUP_SHARDS", 3)
        monkeypatch.setattr(loader, "GROUP_SHARDS", 1)  # open at a time: two
        here = TokenDataset.open(local.uri)
        bound = shards * max(shard.bytes for shard in here.manifest.train.shards)
        there = TokenDataset.open(remote, tmp_path, bound)
        with watched(tmp_path) as sizes:
            for step in range(STEPS if shards > 1 else 20):
                assert batch(there, step) == batch(here, step)
            assert list(there.heldout_batches(4, 16))[3].tolist() == list(here.heldout_batches(4, 16))[3].tolist()
        assert 0 < max(sizes) <= bound

    def test_on_object_storage(
        self, local: TokenDataset, s3_bucket: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(order, "GROUP_SHARDS", 3)
        uri = copied(local, f"s3://{s3_bucket}/x?endpoint_override={s3_endpoint}")
        here, bound = TokenDataset.open(local.uri), 7 * max(shard.bytes for shard in local.manifest.train.shards)
        assert bound < sum(shard.bytes for shard in local.manifest.train.shards)
        there = TokenDataset.open(uri, tmp_path, bound)
        with watched(tmp_path) as sizes:
            for step in range(0, STEPS, 2):
                rows = [batch(there, step, rank=rank, world=2) for rank in range(2)]
                assert rows == [batch(here, step)[rank::2] for rank in range(2)]
        assert 0 < max(sizes) <= bound

    def test_only_what_is_needed_is_copied_and_only_once(
        self, remote: str, tmp_path: Path, downloads: Counter[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(order, "GROUP_SHARDS", 3)
        dataset = TokenDataset.open(remote, tmp_path)
        assert not downloads
        batch(dataset, 0)
        assert 1 <= len(downloads) <= 6
        for step in range(STEPS):
            batch(dataset, step)
        assert set(downloads) == {shard.name for shard in dataset.manifest.train.shards}
        for step in range(20):
            batch(TokenDataset.open(remote, tmp_path), step)
        assert set(downloads.values()) == {1}

    @pytest.mark.parametrize(("room", "copied_ahead"), [(12, 6), (5, 3)])
    def test_the_next_group_is_copied_ahead_if_there_is_room(
        self,
        local: TokenDataset,
        remote: str,
        room: int,
        copied_ahead: int,
        tmp_path: Path,
        downloads: Counter[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(order, "GROUP_SHARDS", 3)
        bound = room * max(shard.bytes for shard in local.manifest.train.shards)
        dataset = TokenDataset.open(remote, tmp_path, bound)
        batch(dataset, 0)
        for thread in dataset._files._threads:  # type: ignore[attr-defined]
            thread.join()
        assert sum(downloads.values()) == copied_ahead


def test_processes_share_a_cache(remote: str, tmp_path: Path, downloads: Counter[str]) -> None:
    """Each opens the dataset for itself; locks of files bind threads as they do processes."""

    def read(_: int) -> list[list[list[int]]]:
        dataset = TokenDataset.open(remote, tmp_path)
        return [batch(dataset, step) for step in range(30)]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(read, range(4)))
    assert all(result == results[0] for result in results)
    assert set(downloads.values()) == {1}


def test_processes_that_fight_over_a_small_cache_all_go_on(local: TokenDataset, remote: str, tmp_path: Path) -> None:
    bound = 2 * max(shard.bytes for shard in local.manifest.train.shards)
    with ThreadPoolExecutor(4) as pool, watched(tmp_path) as sizes:
        opened = [TokenDataset.open(remote, tmp_path, bound) for _ in range(4)]
        results = list(pool.map(lambda dataset: [batch(dataset, step) for step in range(4)], opened))
    assert all(result == [batch(local, step) for step in range(4)] for result in results)
    assert max(sizes) <= bound


class TestRoom:
    @pytest.fixture
    def shards(self, local: TokenDataset) -> tuple[Shard, ...]:
        return local.manifest.train.shards

    def test_what_was_used_longest_ago_makes_room(self, remote: str, tmp_path: Path, shards: tuple[Shard, ...]) -> None:
        files = CachedShards(remote, "key", tmp_path, sum(shard.bytes for shard in shards[:3]))
        for age, shard in enumerate(shards[:3]):
            files.open(shard)
            os.utime(tmp_path / "key" / shard.name, (1000 + age, 1000 + age))
        files.open(shards[0])
        opened = files.open(shards[3])
        left = {path.name for path in (tmp_path / "key").glob("*.npy")}
        assert {shards[0].name, shards[3].name} <= left
        assert shards[1].name not in left
        assert len(opened) == shards[3].tokens

    def test_an_open_shard_stays_readable(self, remote: str, tmp_path: Path, shards: tuple[Shard, ...]) -> None:
        files = CachedShards(remote, "key", tmp_path, max(shard.bytes for shard in shards))
        opened = files.open(shards[0])
        before = np.array(opened)
        files.open(shards[1])
        assert [path.name for path in (tmp_path / "key").glob("*.npy")] == [shards[1].name]
        assert np.array_equal(opened, before)

    def test_what_a_killed_process_had_begun_takes_no_room(
        self, remote: str, tmp_path: Path, shards: tuple[Shard, ...]
    ) -> None:
        (tmp_path / "key").mkdir()
        for shard in shards[:2]:
            (tmp_path / "key" / f".{shard.name}.{shard.bytes}.part").write_bytes(b"half of it")
        files = CachedShards(remote, "key", tmp_path, max(shard.bytes for shard in shards))
        assert len(files.open(shards[0])) == shards[0].tokens
        assert [path.name for path in (tmp_path / "key").iterdir()] == [shards[0].name]

    def test_what_a_living_process_has_begun_keeps_its_room(
        self, remote: str, tmp_path: Path, shards: tuple[Shard, ...]
    ) -> None:
        (tmp_path / "key").mkdir()
        partial = tmp_path / "key" / f".other.npy.{shards[1].bytes}.part"
        hold = (
            "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", hold, partial], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            files = CachedShards(remote, "key", tmp_path, shards[0].bytes + shards[1].bytes - 1)
            with ThreadPoolExecutor(1) as pool:
                opening = pool.submit(files.open, shards[0])
                with pytest.raises(TimeoutError):
                    opening.result(timeout=0.3)
                assert partial.exists()
                other.kill()
                assert len(opening.result(timeout=20)) == shards[0].tokens
        assert not partial.exists()

    def test_a_cache_below_one_shard_is_refused(self, remote: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cache_bytes: 1000 is less than shard .*npy"):
            batch(TokenDataset.open(remote, tmp_path, 1000), 0)


class TestFaults:
    def failing(self, times: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The first reads from the store raise `error`; the list of all of them."""
        tried: list[str] = []
        fs, _ = storage.filesystem("memory://")
        original: Callable[..., None] = fs.get_file

        def get_file(path: str, target: str) -> None:
            tried.append(path)
            if len(tried) <= times:
                Path(target).write_bytes(b"half of it")
                raise error
            original(path, target)

        monkeypatch.setattr(fs, "get_file", get_file)
        return tried

    def opened(self, local: TokenDataset, remote: str, cache: Path) -> int:
        return len(CachedShards(remote, "key", cache, 10**9).open(local.manifest.train.shards[3]))

    def test_a_passing_fault_is_waited_for(
        self, local: TokenDataset, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """For as long as storage is given, whatever number of tries that is."""
        tried = self.failing(6, TimeoutError("slow down"), monkeypatch)
        assert self.opened(local, remote, tmp_path) == local.manifest.train.shards[3].tokens
        assert len(tried) == 7

    @pytest.mark.parametrize(
        ("error", "passing"),
        [
            (TimeoutError("slow down"), True),
            (FileNotFoundError(), False),
            (OSError(28, "No space left on device"), False),
        ],
    )
    def test_a_lasting_one_is_refused_by_name_and_leaves_nothing(
        self,
        local: TokenDataset,
        remote: str,
        tmp_path: Path,
        error: Exception,
        passing: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        tried = self.failing(99, error, monkeypatch)
        with pytest.raises(InputError, match=r"train-00003\.npy") as refused:
            self.opened(local, remote, tmp_path)
        assert "\n" not in str(refused.value)
        assert (len(tried) > 2) == passing
        assert passing or len(tried) == 1
        assert list((tmp_path / "key").iterdir()) == []

    def test_damage_in_the_store_is_refused_and_not_kept(
        self, local: TokenDataset, remote: str, tmp_path: Path
    ) -> None:
        uri = storage.join(remote, "train-00003.npy")
        raw = bytearray(storage.read_bytes(uri))
        raw[-1] ^= 1
        storage.write_bytes_atomic(uri, bytes(raw))
        with pytest.raises(InputError, match=r"train-00003\.npy.* is damaged: its sha256"):
            self.opened(local, remote, tmp_path)
        assert list((tmp_path / "key").iterdir()) == []

    def test_a_copy_cut_short_is_made_again(self, local: TokenDataset, remote: str, tmp_path: Path) -> None:
        self.opened(local, remote, tmp_path)
        path = tmp_path / "key" / "train-00003.npy"
        path.write_bytes(path.read_bytes()[:-10])
        assert self.opened(local, remote, tmp_path) == local.manifest.train.shards[3].tokens

    def test_a_damaged_tokenizer_in_the_store_is_refused(self, remote: str, tmp_path: Path) -> None:
        uri = storage.join(remote, "tokenizer.json")
        storage.write_bytes_atomic(uri, storage.read_bytes(uri).replace(b"a", b"b", 1))
        with pytest.raises(InputError, match=r"tokenizer\.json.* is damaged"):
            TokenDataset.open(remote, tmp_path)
