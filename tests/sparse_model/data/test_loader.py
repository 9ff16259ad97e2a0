"""Batches as a pure function of seed and step, whatever the number of workers; damage is noticed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, strategies as st

from sparse_model.data.config import CorpusConfig, SourceConfig, TokenizerConfig
from sparse_model.data.corpora import Split
from sparse_model.data.loader import TokenDataset
from sparse_model.data.processes import in_turn
from sparse_model.data.shards import prepare
from sparse_model.errors import InputError

CORPUS = CorpusConfig(sources=(SourceConfig(source="idioms", megabytes=0.1),), heldout_fraction=0.1)
CONTEXT = 32


def make(root: str) -> TokenDataset:
    """A dataset of a dozen parts, each a shard of about 4000 training tokens."""
    return prepare(CORPUS, TokenizerConfig(vocab_size=400), root, execute=in_turn, part_bytes=9_000)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    return make(str(tmp_path_factory.mktemp("root")))


def all_windows(dataset: TokenDataset, split: Split, context: int = CONTEXT) -> list[list[int]]:
    """The slow, obvious reference: every window in the order of the text."""
    windows = []
    for shard in dataset.manifest.split(split).shards:
        tokens = np.load(Path(dataset.uri, shard.name)).tolist()
        for start in range(0, len(tokens) - context, context):
            windows.append(tokens[start : start + context + 1])
    return windows


def batch(dataset: TokenDataset, step: int, size: int = 8, **rest: int) -> npt.NDArray[np.int64]:
    return dataset.batch("train", step, batch_size=size, context=CONTEXT, **({"seed": 5} | rest))


class TestBatches:
    def test_shape_and_type(self, dataset: TokenDataset) -> None:
        rows = batch(dataset, 0, rank=1, world=2)
        assert rows.shape == (4, CONTEXT + 1)
        assert rows.dtype == np.int64

    def test_an_epoch_visits_every_window_once(self, dataset: TokenDataset) -> None:
        windows = all_windows(dataset, "train")
        assert dataset.n_windows("train", CONTEXT) == len(windows)
        stream = np.concatenate([batch(dataset, step) for step in range(2 * len(windows) // 8 + 1)]).tolist()
        first, second = stream[: len(windows)], stream[len(windows) : 2 * len(windows)]
        assert first != windows
        assert first != second
        assert sorted(first) == sorted(second) == sorted(windows)

    @given(step=st.integers(0, 400), world=st.sampled_from([1, 2, 4, 8]))
    def test_workers_together_see_what_one_would(self, dataset: TokenDataset, step: int, world: int) -> None:
        whole = batch(dataset, step)
        for rank in range(world):
            assert np.array_equal(batch(dataset, step, rank=rank, world=world), whole[rank::world])

    def test_only_seed_and_step_matter(self, dataset: TokenDataset) -> None:
        fresh = TokenDataset.open(dataset.uri)
        forwards = [batch(dataset, step) for step in range(200)]
        backwards = [batch(fresh, step) for step in reversed(range(200))]
        assert all(np.array_equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
        assert not np.array_equal(batch(dataset, 0), batch(dataset, 0, seed=6))

    def test_a_batch_may_be_larger_than_the_epoch(self, dataset: TokenDataset) -> None:
        total = dataset.n_windows("heldout", CONTEXT)
        rows = dataset.batch("heldout", 0, batch_size=3 * total, context=CONTEXT, seed=0).tolist()
        assert sorted(rows) == sorted(3 * all_windows(dataset, "heldout"))

    @pytest.mark.parametrize("context", [1, 7, 100, 1500])
    def test_any_context_that_fits(self, dataset: TokenDataset, context: int) -> None:
        windows = all_windows(dataset, "train", context)
        rows = dataset.batch("train", 0, batch_size=len(windows), context=context, seed=0)
        assert sorted(rows.tolist()) == sorted(windows)

    def test_impossible_requests_are_refused(self, dataset: TokenDataset) -> None:
        with pytest.raises(InputError, match="context: 4000 is too long for the train split"):
            dataset.batch("train", 0, batch_size=1, context=4000, seed=0)
        with pytest.raises(InputError, match="batch_size: 8 is not a multiple of the 3 workers"):
            batch(dataset, 0, rank=0, world=3)


class TestHeldoutBatches:
    def test_all_windows_in_order_the_last_batch_partial(self, dataset: TokenDataset) -> None:
        windows = all_windows(dataset, "heldout")
        size = 7
        assert len(windows) % size != 0
        batches = list(dataset.heldout_batches(size, CONTEXT))
        assert [len(rows) for rows in batches] == [size] * (len(windows) // size) + [len(windows) % size]
        assert np.concatenate(batches).tolist() == windows

    @pytest.mark.parametrize(("max_tokens", "windows"), [(1, 1), (CONTEXT * 5, 5), (CONTEXT * 6 - 1, 5), (10**9, None)])
    def test_the_limit_counts_targets(self, dataset: TokenDataset, max_tokens: int, windows: int | None) -> None:
        rows = np.concatenate(list(dataset.heldout_batches(4, CONTEXT, max_tokens)))
        assert rows.tolist() == all_windows(dataset, "heldout")[:windows]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def wrong_type(path: Path) -> None:
    np.save(path, np.load(path).astype(np.int32))


def shorter(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


class TestDamage:
    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        return Path(make(str(tmp_path)).uri)

    @pytest.mark.parametrize("harm", [truncate, wrong_type, shorter, Path.unlink])
    def test_a_damaged_shard_is_refused_by_name(self, copy: Path, harm: Callable[[Path], None]) -> None:
        harm(copy / "train-00003.npy")
        with pytest.raises(InputError, match=r"train-00003\.npy") as refused:
            TokenDataset.open(str(copy))
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("harm", [truncate, Path.unlink])
    def test_a_damaged_tokenizer_is_refused_by_name(self, copy: Path, harm: Callable[[Path], None]) -> None:
        harm(copy / "tokenizer.json")
        with pytest.raises(InputError, match=r"tokenizer\.json"):
            TokenDataset.open(str(copy))

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda text: text[:-20], "damaged manifest.json"),
            (lambda text: "[]", "damaged manifest.json"),
            (lambda text: text.replace('"key"', '"kex"'), "damaged manifest.json: key"),
            (lambda text: text.replace("train-00003.npy", "../../other.npy"), "train.shards.3.name"),
            (lambda text: json.dumps(json.loads(text) | {"format": 2}), "damaged manifest.json: format"),
        ],
    )
    def test_a_damaged_manifest_is_refused(self, copy: Path, change: Callable[[str], str], reason: str) -> None:
        manifest = copy / "manifest.json"
        manifest.write_text(change(manifest.read_text()))
        with pytest.raises(InputError, match=reason) as refused:
            TokenDataset.open(str(copy))
        assert "\n" not in str(refused.value)

    def test_an_unfinished_dataset_is_refused(self, copy: Path) -> None:
        (copy / "manifest.json").unlink()
        with pytest.raises(InputError, match="it is missing or was not finished"):
            TokenDataset.open(str(copy))
