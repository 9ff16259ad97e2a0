"""Preparing a dataset: right tokens, same bytes, new key for new input, nothing half-made."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from sparse_model import storage
from sparse_model.data import corpora, loader, parts
from sparse_model.data.config import CorpusConfig, TokenizerConfig
from sparse_model.data.corpora import SPLITS, documents, split_of
from sparse_model.data.loader import TokenDataset
from sparse_model.data.processes import in_turn
from sparse_model.data.shards import prepare
from sparse_model.errors import InputError

TOKENIZER = TokenizerConfig(vocab_size=400)


def corpus_of(*sources: str, megabytes: float | None = None, **rest: object) -> CorpusConfig:
    listed = [{"source": source, "megabytes": megabytes} for source in sources]
    return CorpusConfig.model_validate({"sources": listed, "heldout_fraction": 0.1, **rest})


IDIOMS = corpus_of("idioms", megabytes=0.1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of remote shards stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(loader, "default_cache", lambda: folder)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """120 kB of distinct rows."""
    path = tmp_path / "input.jsonl"
    rows = [json.dumps({"text": f"row {n}: value = {n * n}; print('row', {n})"}) for n in range(3000)]
    path.write_text("\n".join(rows))
    return path


def files_below(folder: str | Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def test_the_tokens_are_the_documents_of_each_split(root_uri: str) -> None:
    dataset = prepare(IDIOMS, TOKENIZER, root_uri)
    texts = list(documents(IDIOMS.sources[0], IDIOMS))
    for split in SPLITS:
        expected = [text for text in texts if split_of(text, IDIOMS.heldout_fraction) == split]
        ids = [token for text in expected for token in [*dataset.tokenizer.encode(text), dataset.tokenizer.eot]]
        (shard,) = dataset.manifest.split(split).shards
        raw = storage.read_bytes(storage.join(dataset.uri, shard.name))
        tokens = np.frombuffer(raw, dtype=np.uint16)[-len(ids) :]
        assert tokens.tolist() == ids
        assert dataset.n_tokens(split) == len(ids)
        assert dataset.manifest.split(split).documents == len(expected)
        assert dataset.manifest.split(split).text_bytes == sum(len(text.encode()) for text in expected)
    names = ["heldout-00000.npy", "manifest.json", "tokenizer.json", "train-00000.npy"]
    assert storage.listdir(dataset.uri) == names


def test_shards_cut_the_same_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(IDIOMS, TOKENIZER, str(tmp_path / "whole"))
    monkeypatch.setattr(parts, "SHARD_TOKENS", 1000)
    monkeypatch.setattr(parts, "BATCH_BYTES", 3000)
    cut = prepare(IDIOMS, TOKENIZER, str(tmp_path / "cut"))
    for split in SPLITS:
        pieces = [np.load(Path(cut.uri, shard.name)) for shard in cut.manifest.split(split).shards]
        assert {len(part) for part in pieces[:-1]} == {1000}
        assert 0 < len(pieces[-1]) <= 1000
        (shard,) = whole.manifest.split(split).shards
        assert np.array_equal(np.concatenate(pieces), np.load(Path(whole.uri, shard.name)))


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for root in ("a", "b"):
        prepare(IDIOMS, TOKENIZER, str(tmp_path / root))
    assert files_below(tmp_path / "a") == files_below(tmp_path / "b")


def test_a_finished_dataset_is_not_made_again(tmp_path: Path) -> None:
    stages: list[str] = []
    first = prepare(IDIOMS, TOKENIZER, str(tmp_path), lambda stage, share: stages.append(stage))
    assert set(stages) == {"corpus", "tokenizer", "tokens"}
    stages.clear()
    again = prepare(IDIOMS, TOKENIZER, str(tmp_path), lambda stage, share: stages.append(stage))
    assert set(stages) == {"corpus"}
    assert again.manifest == first.manifest


def test_progress_rises_to_one_in_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "BATCH_BYTES", 10_000)
    seen: dict[str, list[float]] = {}
    corpus = corpus_of("idioms", "stdlib", megabytes=0.1)
    prepare(corpus, TOKENIZER, str(tmp_path), lambda stage, share: seen.setdefault(stage, []).append(share))
    assert list(seen) == ["corpus", "tokenizer", "tokens"]
    for shares in seen.values():
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
    assert len(seen["tokens"]) > 10


class TestAChangeMakesANewSet:
    def test_configuration(self, tmp_path: Path) -> None:
        variants = [
            (IDIOMS, TOKENIZER),
            (IDIOMS.model_copy(update={"seed": 1}), TOKENIZER),
            (IDIOMS.model_copy(update={"heldout_fraction": 0.2}), TOKENIZER),
            (corpus_of("idioms", megabytes=0.11), TOKENIZER),
            (IDIOMS, TokenizerConfig(vocab_size=401)),
        ]
        keys = {prepare(corpus, config, str(tmp_path)).manifest.key for corpus, config in variants}
        assert len(keys) == len(variants)
        assert {path.name for path in (tmp_path / "data").iterdir()} == keys

    def test_input_file(self, text_file: Path, tmp_path: Path) -> None:
        corpus = corpus_of(str(text_file))
        before = prepare(corpus, TOKENIZER, str(tmp_path / "root"))
        text_file.write_text(text_file.read_text().replace("value", "other"))
        after = prepare(corpus, TOKENIZER, str(tmp_path / "root"))
        assert after.uri != before.uri
        assert "other" in after.tokenizer.decode(after.batch("train", 0, batch_size=1, context=64, seed=0)[0])

    def test_generator(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = prepare(IDIOMS, TOKENIZER, str(tmp_path))
        original = corpora.programs
        monkeypatch.setattr(corpora, "programs", lambda seed: (f"# new\n{text}" for text in original(seed)))
        assert prepare(IDIOMS, TOKENIZER, str(tmp_path)).manifest.key != before.manifest.key


class TestNothingHalfMade:
    def test_an_interrupted_preparation_has_no_manifest_and_is_done_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parts, "SHARD_TOKENS", 1000)
        monkeypatch.setattr(parts, "BATCH_BYTES", 3000)

        def interrupt(stage: str, share: float) -> None:
            if stage == "tokens" and share > 0.5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(IDIOMS, TOKENIZER, str(tmp_path / "a"), interrupt)
        left = files_below(tmp_path / "a")
        assert left
        assert not any(name.endswith("manifest.json") for name in left)
        prepare(IDIOMS, TOKENIZER, str(tmp_path / "a"))
        prepare(IDIOMS, TOKENIZER, str(tmp_path / "b"))
        assert files_below(tmp_path / "a") == files_below(tmp_path / "b")

    @pytest.mark.parametrize("part_bytes", [10**6, 20_000])
    def test_several_at_once_make_the_same_set(self, tmp_path: Path, part_bytes: int) -> None:
        def make(root: str) -> TokenDataset:
            return prepare(IDIOMS, TOKENIZER, str(tmp_path / root), execute=in_turn, part_bytes=part_bytes)

        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(make, "aaaa"))
        assert len({dataset.manifest.model_dump_json() for dataset in made}) == 1
        make("b")
        assert files_below(tmp_path / "a") == files_below(tmp_path / "b")

    def test_input_that_changes_meanwhile_is_refused(self, text_file: Path, tmp_path: Path) -> None:
        def meddle(stage: str, share: float) -> None:
            if stage == "tokens":
                text_file.write_text(text_file.read_text() + " ")

        root = tmp_path / "root"
        with pytest.raises(InputError, match="changed while it was read"):
            prepare(corpus_of(str(text_file)), TOKENIZER, str(root), meddle)
        assert files_below(root) == {}

    def test_too_little_heldout_text_is_refused(self, tmp_path: Path) -> None:
        corpus = IDIOMS.model_copy(update={"heldout_fraction": 0.002})
        with pytest.raises(InputError, match=r"heldout split has \d+ tokens .* at least 1024 .* \(now 0.002\)"):
            prepare(corpus, TOKENIZER, str(tmp_path))
        assert files_below(tmp_path) == {}

    def test_a_place_that_cannot_be_written_is_refused_before_any_work(self) -> None:
        stages: set[str] = set()
        with pytest.raises(InputError, match="cannot write /proc/nothing"):
            prepare(IDIOMS, TOKENIZER, "/proc/nothing", lambda stage, share: stages.add(stage))
        assert stages == {"corpus"}

    def test_a_vocabulary_out_of_reach_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="vocab_size: 60000"):
            prepare(IDIOMS, TokenizerConfig(vocab_size=60000), str(tmp_path))
        assert files_below(tmp_path) == {}


def test_the_tokenizer_never_sees_heldout_text(tmp_path: Path) -> None:
    """Held-out rows are made of one letter that training rows lack; it must have earned no merge."""
    rows = [f"{letter * 8} {n}" for n in range(3000) for letter in "xy"]
    kept = [row for row in rows if (split_of(row, 0.5) == "heldout") == (row[0] == "y")]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": row}) for row in kept))
    corpus = corpus_of(str(path), heldout_fraction=0.5)
    dataset = prepare(corpus, TokenizerConfig(vocab_size=270), str(tmp_path / "root"))
    assert len(dataset.tokenizer.encode("xxxxxxxx")) == 1
    assert len(dataset.tokenizer.encode("yyyyyyyy")) == 8


def test_a_dataset_that_was_begun_with_is_gone_on_with_under_other_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What has changed is said: a library, or the text."""

    def prepared(begun: str | None = None) -> TokenDataset:
        return prepare(IDIOMS, TOKENIZER, str(tmp_path / "root"), begun=begun)

    first = prepared()
    monkeypatch.setattr(tokenizers, "__version__", "99")
    assert prepared(first.manifest.key).manifest == first.manifest
    assert "a library is not (tokenizers" in caplog.text
    assert prepared().manifest.key != first.manifest.key, "a study of its own has tokens of its own"
    other = corpus_of("idioms", megabytes=0.1, seed=9)
    with pytest.raises(InputError, match="its text has changed"):
        prepare(other, TOKENIZER, str(tmp_path / "root"), begun=first.manifest.key)
    with pytest.raises(InputError, match="are gone"):
        prepare(IDIOMS, TOKENIZER, str(tmp_path / "elsewhere"), begun=first.manifest.key)
    path = tmp_path / "root" / "data" / first.manifest.key / "manifest.json"
    path.write_text(path.read_text().replace(first.manifest.text, ""))
    with pytest.raises(InputError, match="its text has changed, or a library"):
        prepared(first.manifest.key)
