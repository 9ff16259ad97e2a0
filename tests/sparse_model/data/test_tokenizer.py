"""Round trips, determinism, the pattern's splits, and files that are not ours."""

import os
import pickle
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, strategies as st

from sparse_model.data.config import TokenizerConfig
from sparse_model.data.idioms.programs import programs
from sparse_model.data.tokenizer import END_OF_TEXT, Tokenizer
from sparse_model.errors import InputError
from sparse_model.storage.files import join

CONFIG = TokenizerConfig(vocab_size=600)
PROGRAMS = list(islice(programs(0), 300))
TOKENIZER = Tokenizer.train(PROGRAMS, CONFIG)
PIECES = st.sampled_from([END_OF_TEXT, "<|", "|>", "\r\n", "    ", "é", "👩‍💻", '("', "123", "x", "\x00", "Ġ"])


@given(st.text() | st.lists(PIECES).map("".join))
def test_any_text_survives_and_none_contains_the_separator(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.eot not in ids


@given(st.lists(st.text(), max_size=5))
def test_a_batch_is_its_texts_one_by_one(texts: list[str]) -> None:
    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]


def test_the_separator_is_readable() -> None:
    assert TOKENIZER.decode([*TOKENIZER.encode("a"), TOKENIZER.eot]) == "a" + END_OF_TEXT


def test_the_vocabulary_has_the_size_asked_for() -> None:
    assert TOKENIZER.vocab_size == CONFIG.vocab_size
    assert max(max(TOKENIZER.encode(text)) for text in PROGRAMS) < CONFIG.vocab_size


def test_tokens_read_like_the_text_they_came_from() -> None:
    ids = TOKENIZER.encode(PROGRAMS[0])
    assert "".join(TOKENIZER.token_text(token) for token in ids) == PROGRAMS[0]
    with pytest.raises(InputError, match="token 600 does not exist: allowed are 0 to 599"):
        TOKENIZER.token_text(600)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ('print("hello")\n', ["print", '("', "hello", '")\n']),
        ("x = [[1, 2], 'a']", ["x", " =", " [[", "1", ",", " ", "2", "],", " '", "a", "']"]),
        ("a\n\n    return b", ["a", "\n\n", "   ", " return", " b"]),
        ("self.width=12345", ["self", ".width", "=", "123", "45"]),
        ("é_1 # x", ["é", "_", "1", " #", " x"]),
    ],
)
def test_merges_stay_within_the_pieces_of_the_pattern(text: str, pieces: list[str]) -> None:
    """Worked out by hand from METHOD section 4; no token may span two pieces."""
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
    split = backend.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in split] == pieces
    assert TOKENIZER.encode(text) == [token for piece in pieces for token in TOKENIZER.encode(piece)]


@pytest.mark.parametrize("piece", ['("', "print", " =", "\n\n"])
def test_frequent_pieces_of_code_are_one_token(piece: str) -> None:
    assert len(TOKENIZER.encode(piece)) == 1


def test_training_again_gives_the_same_bytes_in_any_process() -> None:
    """Hash seeds and thread counts differ between processes; the vocabulary must not."""
    program = (
        "from itertools import islice\n"
        "from sparse_model.data import Tokenizer, TokenizerConfig\n"
        "from sparse_model.data.idioms.programs import programs\n"
        "trained = Tokenizer.train(islice(programs(0), 300), TokenizerConfig(vocab_size=600))\n"
        "print(trained.to_json())\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output == TOKENIZER.to_json() + "\n"


def test_a_vocabulary_out_of_reach_is_refused_with_what_was_reached() -> None:
    with pytest.raises(InputError, match=r"vocab_size: 600 cannot be reached: .* only 2\d\d tokens"):
        Tokenizer.train(["tiny text, tiny text"], CONFIG)


def test_saved_and_loaded_it_is_the_same(root_uri: str) -> None:
    path = join(root_uri, "tokenizer.json")
    TOKENIZER.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.to_json() == TOKENIZER.to_json()
    assert loaded.encode(PROGRAMS[1] + END_OF_TEXT) == TOKENIZER.encode(PROGRAMS[1] + END_OF_TEXT)


def test_files_of_earlier_versions_are_read() -> None:
    """They had the separator as a special token, which other readers of the file find inside texts."""
    earlier = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
    earlier.add_special_tokens([END_OF_TEXT])
    again = Tokenizer.from_json(earlier.to_str())
    assert again.to_json() == TOKENIZER.to_json() != earlier.to_str()
    assert again.encode("x" + END_OF_TEXT) == TOKENIZER.encode("x" + END_OF_TEXT)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(InputError, match=r"text: character 1 is not valid Unicode"):
        TOKENIZER.encode("h\udce9llo")


def test_ids_that_are_no_tokens_are_refused() -> None:
    for token in (-1, 600, 10**12):
        with pytest.raises(InputError, match=f"token {token} does not exist: allowed are 0 to 599"):
            TOKENIZER.decode([65, token])


def test_a_copy_sent_to_another_process_is_the_same() -> None:
    text = PROGRAMS[0] + END_OF_TEXT
    assert pickle.loads(pickle.dumps(TOKENIZER)).encode(text) == TOKENIZER.encode(text)


def test_hugging_face_reads_the_file(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    foreign = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert foreign.encode(PROGRAMS[2]).ids == TOKENIZER.encode(PROGRAMS[2])
    assert foreign.decode(TOKENIZER.encode(PROGRAMS[2])) == PROGRAMS[2]


@pytest.mark.parametrize(
    "content",
    [
        TOKENIZER.to_json()[:-50].encode(),
        b"",
        b"{}",
        b"\xff\xfe",
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, END_OF_TEXT: 1})).to_str().encode(),
        tokenizers.Tokenizer(tokenizers.models.BPE()).to_str().encode(),
        TOKENIZER.to_json().replace("endoftext", "another").encode(),
    ],
    ids=["truncated", "empty", "object", "binary", "words", "untrained", "no separator"],
)
def test_damaged_and_foreign_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: ") as refused:
        Tokenizer.load(tmp_path / "tokenizer.json")
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: it does not exist"):
        Tokenizer.load(tmp_path / "none.json")
