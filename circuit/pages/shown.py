"""Tokens as a page shows them. Corpora are hostile: what cannot be seen is spelled out, what is long is cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Protocol

_LONGEST = 60
"""Characters of a token that are shown."""

SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": " "}


class TokenDecoder(Protocol):
    """The only part of a tokenizer that a page needs."""

    def decode(self, ids: Sequence[int]) -> str: ...


class TokenTable:
    """Texts of the tokens a page speaks of, each once; `of` gives the place of a token in `texts`."""

    def __init__(self, tokenizer: TokenDecoder | None) -> None:
        self.tokenizer = tokenizer
        self.texts: list[str] = []
        self._places: dict[int, int] = {}

    def of(self, token: int) -> int:
        if token not in self._places:
            self._places[token] = len(self.texts)
            text = f"#{token}" if self.tokenizer is None else self.tokenizer.decode([token])
            self.texts.append(visible(text))
        return self._places[token]

    def all(self, tokens: Sequence[int]) -> list[int]:
        return [self.of(token) for token in tokens]


def visible(text: str, longest: int = _LONGEST) -> str:
    """A text on one line: control characters, marks of direction and other unseen ones by their code point."""
    cut = "".join(_sign(character) for character in text[:longest])
    return cut if len(text) <= longest else f"{cut}… ({len(text):,} characters)"


def _sign(character: str) -> str:
    if character in SIGNS:
        return SIGNS[character]
    unseen = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
    return f"\\u{{{ord(character):x}}}" if unseen else character


def cue_marks(a: Sequence[int], b: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of two prompts are not in the other: the cue."""
    in_a, in_b = [True] * len(a), [True] * len(b)
    for block in SequenceMatcher(None, list(a), list(b), autojunk=False).get_matching_blocks():
        in_a[block.a : block.a + block.size] = [False] * block.size
        in_b[block.b : block.b + block.size] = [False] * block.size
    return in_a, in_b
