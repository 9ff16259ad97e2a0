"""Long texts in pieces of bounded size: a tokenizer takes 170 bytes of memory for each character of a text.

The pieces are a function of the text alone, whatever it is read in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

LONGEST = 100_000
"""Bytes of UTF-8 in a document. Files of code are rarely longer, books are."""


def cut(text: str) -> Iterator[str]:
    """A document in pieces of at most LONGEST bytes; one that is no longer, as it is."""
    if len(text) <= LONGEST // 4:  # four bytes a character at most
        yield text
        return
    for piece in cut_bytes([text.encode("utf-8")]):
        yield piece.decode("utf-8")


def cut_bytes(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """UTF-8 that comes in blocks, in pieces of at most LONGEST bytes: cut behind the last line end that fits.

    Where a line is longer, behind the last space that fits, or else between two characters.
    """
    rest = b""
    for block in blocks:
        rest = rest + block if rest else block
        start = 0
        while len(rest) - start > LONGEST:
            end = _end(rest, start)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _end(text: bytes, start: int) -> int:
    """Where the piece ends that begins at `start`, of a text that goes on beyond it."""
    limit = start + LONGEST
    for mark in (b"\n", b"\r", b" "):
        if (found := text.rfind(mark, start, limit)) >= start:
            return found + 1
    end = limit
    while end > limit - 4 and text[end] & 0xC0 == 0x80:  # within a character
        end -= 1
    return end
