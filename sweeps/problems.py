"""Several mistakes told at once: one line each, naming the field, the value and what is allowed."""

from __future__ import annotations

import difflib
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


def pydantic_problems(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[Problem]:
    """The mistakes in a pydantic error, unknown keys with the nearest known one."""
    details = error.errors()
    places = [detail["loc"] for detail in details]
    return [
        Problem(_path(detail["loc"], prefix), _message(detail, model))
        for detail in details
        # A list of bad items is not also too short.
        if not any(place[: len(detail["loc"])] == detail["loc"] != place for place in places)
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


def _message(detail: Any, model: type[BaseModel]) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return unknown_key(str(detail["loc"][-1]), _known_keys(model, detail["loc"]))
    message: str = detail["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return message
    return f"{shown(value)}: {message[0].lower()}{message[1:]}"


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
