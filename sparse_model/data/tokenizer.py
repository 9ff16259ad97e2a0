"""Byte-level BPE with the pre-tokenizer of the paper's released code; any text survives a round trip."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from sparse_model.data.config import TokenizerConfig
from sparse_model.errors import InputError
from sparse_model.storage.files import write_bytes_atomic
from sparse_model.storage.paths import PathOrURI, as_uri
from sparse_model.storage.text import read_text

# The released pattern: brackets and quotes can fuse with their neighbours, so that `("` or `],` is one token.
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
END_OF_TEXT = "<|endoftext|>"
START_OF_TEXT = "<|startoftext|>"


class Tokenizer:
    """Text to token ids and back; `eot` is the id that separates documents and no text contains it."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wrap a byte-level BPE that has the separator; raises InputError for any other tokenizer."""
        eot = backend.token_to_id(END_OF_TEXT)
        missing = [symbol for symbol in _alphabet() if backend.token_to_id(symbol) is None]
        if eot is None or missing or not isinstance(backend.model, models.BPE):
            raise InputError(f"tokenizer: not a byte-level BPE with all 256 bytes and a {END_OF_TEXT} token")
        self._backend = _without_specials(backend)
        self.eot: int = eot

    @classmethod
    def train(cls, texts: Iterable[str], config: TokenizerConfig) -> Self:
        """Train on documents; the same documents give the same tokenizer.

        Raises InputError when the text is too small or too uniform for `config.vocab_size` tokens.
        """
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            min_frequency=2,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=_alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        reached = backend.get_vocab_size()
        if reached < config.vocab_size:
            raise InputError(
                f"vocab_size: {config.vocab_size} cannot be reached: this text gives only {reached} tokens; "
                "allow fewer or give more text"
            )
        return cls(backend)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From the content of a tokenizer.json; raises InputError if it is damaged or of another kind."""
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"tokenizer: not a tokenizer.json: {error}") from error
        return cls(backend)

    @classmethod
    def from_gpt2(cls, vocabulary: Mapping[str, int], merges: str, name: str) -> Self:
        """From what encoder.json and vocab.bpe hold, the two files of GPT-2's format, with the pattern above.

        They are read as the authors' reader (tiktoken's) does: the first line is the version, tokens have their ids in
        the order of the merges, the two separators are no merges. Raises InputError, naming `name`, where the two do
        not belong together, one is truncated, or the end of text has no id.
        """
        version, *lines = merges.split("\n")
        pairs = [tuple(line.split()) for line in lines if line.strip()]
        problem = _no_version(version) or _mismatch(vocabulary, pairs)
        if problem is not None:
            raise InputError(f"{name}: {problem}")
        return cls(_byte_level(models.BPE(vocab=dict(vocabulary), merges=[(first, second) for first, second in pairs])))

    @classmethod
    def load(cls, path: PathOrURI) -> Self:
        """From a tokenizer.json on disk or at a URI; raises InputError naming it if it cannot be used."""
        text = read_text(as_uri(path))
        try:
            return cls.from_json(text)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def to_json(self) -> str:
        """The content of tokenizer.json, readable by Hugging Face libraries."""
        return self._backend.to_str(pretty=False)

    def save(self, path: PathOrURI) -> None:
        """Write one tokenizer.json, on disk or at a URI."""
        write_bytes_atomic(as_uri(path), self.to_json().encode("utf-8"))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self).from_json, (self.to_json(),)

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; never contains `eot`. InputError for a text that is not valid Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"text: character {error.start} is not valid Unicode ({error.reason})") from None
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, computed on all cores."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; bytes that form no character become U+FFFD. InputError for an id that is none."""
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise InputError(f"token {token} does not exist: allowed are 0 to {self.vocab_size - 1}")
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def token_text(self, token_id: int) -> str:
        """The text of one token; raises InputError when there is no such token."""
        return self.decode([token_id])


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _without_specials(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same with its special tokens as plain entries of the vocabulary, which no merge makes.

    So text that happens to contain a separator's name is text, here and for whoever reads the saved file.
    """
    content = json.loads(backend.to_str())
    specials = [token for token in content["added_tokens"] if token["special"]]
    if not specials:
        return backend
    for token in specials:
        content["model"]["vocab"].setdefault(token["content"], token["id"])
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _no_version(line: str) -> str | None:
    if line.startswith("#"):
        return None
    return f"vocab.bpe begins with {line.strip()[:40]!r}; allowed: a line with its version, which begins with #"


def _mismatch(vocabulary: Mapping[str, int], pairs: Sequence[tuple[str, ...]]) -> str | None:
    """What keeps an encoder.json and the merges of a vocab.bpe from being one tokenizer."""
    # by their texts: true and 1.0 are no ids
    if not isinstance(vocabulary, dict) or sorted(map(repr, vocabulary.values())) != sorted(
        map(repr, range(len(vocabulary)))
    ):
        return "encoder.json does not give its tokens the ids from 0 on"
    broken = next((pair for pair in pairs if len(pair) != 2), None)
    if broken is not None:
        return f"vocab.bpe has the line {' '.join(broken)!r}; allowed: two tokens and a space between them"
    made = ["".join(pair) for pair in pairs]
    needed = {*made, *_alphabet()}.union(*pairs)
    if lacking := sorted(needed - vocabulary.keys()):
        return f"encoder.json lacks {lacking[0]!r}, which vocab.bpe needs"
    if unmade := sorted(vocabulary.keys() - needed - {END_OF_TEXT, START_OF_TEXT}):
        return f"vocab.bpe has no merge for {unmade[0]!r} of encoder.json ({len(unmade)} tokens in all)"
    if END_OF_TEXT not in vocabulary:
        return f"encoder.json lacks {END_OF_TEXT!r}: which id ends a text is not said"
    # in GPT-2's order: the bytes that can be printed, then the others
    for expected, token in enumerate([*sorted(_alphabet(), key=lambda symbol: (ord(symbol) > 255, symbol)), *made]):
        if vocabulary[token] != expected:
            return f"encoder.json has {token!r} as {vocabulary[token]}; in the order of vocab.bpe it is {expected}"
    return None


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())
