"""Long texts in pieces of bounded size, the same ones however they are read."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from sparse_model.data import CorpusConfig, TokenizerConfig, documents, prepare
from sparse_model.data.processes import in_turn
from sparse_model.data.readers import long_texts, text_files
from sparse_model.data.readers.long_texts import LONGEST, cut, cut_bytes
from sparse_model.data.readers.text_files import pieces, read_texts
from sparse_model.data.readers.uri_files import listed
from sparse_model.errors import InputError

TEXTS = st.lists(st.sampled_from(["a", "\n", "\r\n", " ", "é", "👩‍💻", "\x00", "word "])).map("".join) | st.text()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "LONGEST", 12)


@given(TEXTS)
def test_pieces_are_the_text_and_end_where_they_can(text: str) -> None:
    found = list(cut(text))
    assert "".join(found) == text
    for piece in found:
        assert len(piece.encode()) <= 12
    for piece, following in pairwise(found):
        assert "\n" not in piece[:-1] or piece.endswith("\n")
        if piece[-1] not in "\n\r ":
            assert "\n" not in piece
            assert len((piece + following[0]).encode()) > 12


@given(TEXTS, st.lists(st.integers(1, 9), min_size=1))
def test_how_it_is_read_makes_no_difference(text: str, sizes: list[int]) -> None:
    raw, blocks, place = text.encode(), [], 0
    while place < len(raw):
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(raw[place : place + size])
        place += size
    assert b"".join(cut_bytes(blocks)) == raw
    assert [piece.decode() for piece in cut_bytes(blocks)] == ([] if not text else list(cut_bytes_of(text)))


def cut_bytes_of(text: str) -> list[str]:
    return [piece.decode() for piece in cut_bytes([text.encode()])]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(20, 400), st.sampled_from([1, 3, 2**18]))
def test_pieces_of_a_file_of_text_are_the_file(sizes: list[int], piece_bytes: int, block: int) -> None:
    import fsspec

    text = "\n".join(f"é{n} " + "x" * size for n, size in enumerate(sizes))
    fsspec.filesystem("memory").pipe_file("/long/a.txt", text.encode())
    (file,) = listed("memory://long/a.txt").files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "WHOLE", 20)
        patch.setattr(text_files, "READ_BLOCK", block)
        cuts = pieces(file, piece_bytes)
        assert len(cuts) == -(-len(text.encode()) // piece_bytes)
        assert "".join(read_texts(cuts, "text")) == text
        assert sorted(read_texts(cuts[::-1], "text")) == sorted(read_texts(cuts, "text"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_every_format_is_cut_alike(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "LONGEST", LONGEST)
    text = "".join(f"line {n} é\n" for n in range(60_000))
    if name.endswith("txt"):
        (tmp_path / name).write_text(text)
    elif name.endswith("jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": text}) + "\n")
    else:
        pq.write_table(pa.table({"text": [text]}), tmp_path / name)
    corpus = CorpusConfig.model_validate({"sources": [{"source": str(tmp_path / name)}]})
    found = list(documents(corpus.sources[0], corpus))
    assert "".join(found) == text
    assert len(found) == 9
    assert all(piece.endswith("\n") and 0 <= LONGEST - len(piece.encode()) < 20 for piece in found[:-1])


def test_a_corpus_of_one_document_is_a_corpus_or_told_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_texts, "LONGEST", LONGEST)

    def made(lines: int, heldout_fraction: float) -> object:
        (tmp_path / "a.txt").write_text("".join(f"line {n}, {n * n}\n" for n in range(lines)))
        sources = [{"source": str(tmp_path / "a.txt")}]
        corpus = CorpusConfig.model_validate({"sources": sources, "heldout_fraction": heldout_fraction})
        return prepare(corpus, TokenizerConfig(vocab_size=270), str(tmp_path / "root"), execute=in_turn).manifest

    assert made(100_000, 0.3).heldout.documents > 1  # type: ignore[attr-defined]
    with pytest.raises(InputError) as refused:
        made(4000, 0.02)
    assert "The corpus is 1 document (of at most 100 kB: longer ones are cut)" in str(refused.value)
    assert "or another heldout_fraction (now 0.02)" in str(refused.value)
    assert "\n" not in str(refused.value)
