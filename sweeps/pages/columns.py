"""Columns of a report as its page holds them: numbers in base64, words once each, configurations laid flat."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ColumnArray = np.ndarray[Any, Any]

MOST_AXES = 12
"""Parameters of a report's parallel coordinates: those with the most values among the trials."""


def floats(values: Sequence[float | None] | ColumnArray) -> dict[str, str]:
    """32-bit floats; None is NaN."""
    array = np.array([np.nan if value is None else value for value in values], dtype="<f4")
    return {"f4": base64.b64encode(array.tobytes()).decode()}


def shorts(values: ColumnArray) -> dict[str, str]:
    """16-bit numbers from 0 to 65535."""
    return {"u2": base64.b64encode(np.asarray(values, dtype="<u2").tobytes()).decode()}


def column_words(values: Sequence[str | None]) -> dict[str, Any]:
    """Texts, each once, and 16-bit numbers of them; those beyond 65,535 different ones are left out."""
    places: dict[str, int] = {}
    for value in values:
        places.setdefault(value or "", len(places))
    numbers = np.array([min(places[value or ""], 65535) for value in values], dtype="<u2")
    return {"words": list(places)[:65536], **shorts(numbers)}


def thinned(count: int, most: int) -> ColumnArray:
    """At most so many places out of `count`, first and last among them, evenly between."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)) if count else np.zeros(0, int)


def flat_configs(configs: Sequence[str | None]) -> list[dict[str, Any]]:
    """Each configuration (JSON) as path -> value; empty where there is none that can be read."""
    found = []
    for text in configs:
        try:
            content = json.loads(text) if text else {}
        except ValueError:
            content = {}
        found.append(dict(_leaves(content)) if isinstance(content, dict) else {})
    return found


def _leaves(content: Mapping[str, Any], path: str = "") -> Any:
    for key, value in content.items():
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from _leaves(value, inner)
        else:
            yield inner, value


def varied(configs: Sequence[Mapping[str, Any]], kinds: Sequence[str | None], sampled: set[str] | None) -> list[str]:
    """Parameters that differ between trials of one kind, those of the most values first.

    Where `sampled`, the names the study's space draws, is known, others are left out.
    """
    values: dict[str, set[str]] = {}
    differs: set[str] = set()
    first: dict[tuple[str | None, str], str] = {}
    for config, kind in zip(configs, kinds, strict=True):
        for name, value in config.items():
            text = json.dumps(value)
            values.setdefault(name, set()).add(text)
            if first.setdefault((kind, name), text) != text:
                differs.add(name)
    names = differs if sampled is None else differs & (sampled | {"training.seed"})
    return sorted(names, key=lambda name: (-len(values[name]), name))[:MOST_AXES]


def axis(name: str, configs: Sequence[Mapping[str, Any]], owned: Sequence[bool]) -> dict[str, Any]:
    """One parameter over all trials: numbers, or words. `owned` tells which trials drew it."""
    values = [config.get(name) if own else None for config, own in zip(configs, owned, strict=True)]
    there = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        return {"name": name, **floats(values)}
    return {"name": name, **column_words([None if value is None else json.dumps(value) for value in values])}
