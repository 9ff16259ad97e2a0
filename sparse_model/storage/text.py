"""One rule for everything that people write for us to read: UTF-8, with a byte-order mark or without, no key twice.

Study files (YAML), files of tasks (JSON lines), configurations and tokenizers of released models (JSON, text).
"""

import codecs
import json
from typing import Any

from sparse_model import storage
from sparse_model.errors import InputError

MARKS = {"UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}
"""What files in other encodings begin with; the longer first, which begins like the shorter."""


def decoded(raw: bytes, name: str) -> str:
    """The text in some bytes, without a byte-order mark; InputError, naming `name`, for any other encoding than UTF-8.

    Line ends stay as they are.
    """
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        marked = next((encoding for encoding, marks in MARKS.items() if raw.startswith(marks)), None)
        hint = f", and it begins as {marked} does" if marked else ""
        raise InputError(
            f"{name}: not a text file in UTF-8: byte {raw[error.start]:#04x} in line {line}{hint}; save it as UTF-8"
        ) from None


def parse_json(text: str, name: str) -> Any:
    """What a JSON text says; InputError, naming `name`, for one that is truncated, or has a key twice in an object."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except ValueError as error:
        raise InputError(f"{name}: truncated or not JSON ({error})") from None
    except RecursionError:
        raise InputError(f"{name}: brackets nested too deep") from None


def read_text(uri: str) -> str:
    """The whole text of a file; InputError where it is missing or not UTF-8."""
    return decoded(storage.read_bytes(uri), uri)


def read_json(uri: str) -> Any:
    """What a JSON file says; InputError where it is missing, truncated, not UTF-8, or has a key twice."""
    return parse_json(read_text(uri), uri)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"key {twice!r} is there twice; allowed: each once")
    return found
