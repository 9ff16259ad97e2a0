"""Several mistakes told at once: one line each, naming the field, the value and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from sparse_model.errors import InputError


class InputErrors(InputError):
    """An `InputError` of one line per mistake."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = list(lines)
        super().__init__("\n".join(self.lines))


@dataclass(frozen=True)
class Problem:
    """One mistake: the path of the field (as in `trial.sparse.training.fraction`) and what is wrong with it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


EXPECTED = {
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "a text",
    "bool": "true or false",
}
"""What is allowed where a value is of the wrong kind, by the first word of pydantic's name for that mistake."""


def pydantic_problems(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[Problem]:
    """The mistakes in a pydantic error, one for each place, unknown keys with the nearest known one."""
    by_place: dict[tuple[int | str, ...], list[Any]] = {}
    for detail in error.errors():
        # Where several kinds of value are allowed, there is a place for each, such as `tuple[str, ...]`.
        place = tuple(part for part in detail["loc"] if isinstance(part, int) or "[" not in part)
        by_place.setdefault(place, []).append(detail)
    return [
        Problem(_path(place, prefix), _message(details, place, model))
        for place, details in by_place.items()
        # A list of bad items is not also too short.
        if not any(other[: len(place)] == place != other for other in by_place)
    ]


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to say of a key nobody asked for."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key; allowed: {', '.join(known)}"


def _path(location: tuple[int | str, ...], prefix: str) -> str:
    path = prefix
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _message(details: list[Any], place: tuple[int | str, ...], model: type[BaseModel]) -> str:
    kind, value = details[0]["type"], details[0]["input"]
    if kind == "extra_forbidden":
        return unknown_key(str(place[-1]), _known_keys(model, place))
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        said: str = details[0]["msg"].removeprefix("Value error, ")
        return said
    return f"{shown(value)}; allowed: {' or '.join(_allowed(detail) for detail in details)}"


def _allowed(detail: Any) -> str:
    if detail["type"] == "literal_error":
        expected: str = detail["ctx"]["expected"]
        return expected
    kind: str = detail["type"]
    if kind == "string_too_short":
        return "a text that is not empty"
    if kind == "too_short":
        return f"at least {detail['ctx']['min_length']} of them"
    return EXPECTED.get(kind.split("_")[0]) or re.sub("^.*? should (be|have) ", "", detail["msg"])


def shown(value: Any) -> str:
    """A value as it is quoted in a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys of the (nested) model in which the last part of `location` was found."""
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        found = _nested_model(model.model_fields[part].annotation) if part in model.model_fields else None
        if found is None:
            break
        model = found
    return list(model.model_fields)


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _nested_model(argument)) is not None:
            return found
    return None
