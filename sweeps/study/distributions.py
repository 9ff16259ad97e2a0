"""What a field of a trial's template can be instead of a constant."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

from sweeps.study.problems import shown

Scalar = bool | int | float | str | None


class Sampler(Protocol):
    """The part of `optuna.Trial` that a distribution draws from."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...


@dataclass(frozen=True)
class Choice:
    """One of a list of scalars."""

    values: tuple[Scalar, ...]

    def corners(self) -> tuple[Scalar, ...]:
        return self.values

    def inside(self) -> tuple[Scalar, ...]:
        return ()

    def draw(self, sampler: Sampler, name: str) -> Any:
        return sampler.suggest_categorical(name, self.values)

    def __contains__(self, value: object) -> bool:
        # 1 == True in Python, but not in a study file
        return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in self.values)

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Floats:
    """A number between low and high, evenly or (`log`) evenly in its logarithm."""

    low: float
    high: float
    log: bool

    def corners(self) -> tuple[Scalar, ...]:
        return (self.low, self.high)

    def inside(self) -> tuple[Scalar, ...]:
        return ()

    def draw(self, sampler: Sampler, name: str) -> Any:
        return sampler.suggest_float(name, self.low, self.high, log=self.log)

    def __contains__(self, value: object) -> bool:
        return _is_number(value) and self.low <= value <= self.high  # type: ignore[operator]

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Ints:
    """A whole number from low to high, every `step`."""

    low: int
    high: int
    step: int

    def corners(self) -> tuple[Scalar, ...]:
        return (self.low, self.high - (self.high - self.low) % self.step)

    def inside(self) -> tuple[Scalar, ...]:
        """Every value between the corners: whole numbers may fail a test (divisibility) that both ends pass."""
        return tuple(range(self.low, self.high + 1, self.step))[1:-1]

    def draw(self, sampler: Sampler, name: str) -> Any:
        return sampler.suggest_int(name, *self.corners(), step=self.step)  # type: ignore[arg-type]

    def __contains__(self, value: object) -> bool:
        return type(value) is int and value in range(self.low, self.high + 1, self.step)

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + (f" in steps of {self.step}" if self.step > 1 else "")


Distribution = Choice | Floats | Ints
FORMS = "{choice: [..]}, {uniform: [low, high]}, {loguniform: [low, high]} or {int: [low, high, step]}"


def parse_distribution(raw: dict[str, Any]) -> Distribution:
    """The distribution written as a mapping of one key; ValueError says what is wrong with it."""
    if len(raw) != 1 or (kind := next(iter(raw))) not in ("choice", "uniform", "loguniform", "int"):
        raise ValueError(f"{shown(raw)}: not a distribution; allowed: {FORMS}")
    values = raw[kind]
    if not isinstance(values, list):
        raise ValueError(f"{kind} {shown(values)}: a list is expected")
    if kind == "choice":
        return _choice(values)
    return _ints(values) if kind == "int" else _floats(kind, values)


def _choice(values: list[Any]) -> Choice:
    if not values:
        raise ValueError("choice []: at least one value is needed")
    for value in values:
        if not isinstance(value, Scalar):
            raise ValueError(f"choice of {shown(value)}: numbers, words, true, false and null can be chosen from")
    if len({(type(value), value) for value in values}) < len(values):
        raise ValueError(f"choice {shown(values)}: each value once")
    return Choice(tuple(values))


def _floats(kind: str, values: list[Any]) -> Floats:
    if len(values) != 2 or not all(_is_number(value) for value in values):
        raise ValueError(f"{kind} {shown(values)}: two numbers are expected, [low, high]")
    low, high = map(float, values)
    if not low < high:
        raise ValueError(f"{kind} [{low:g}, {high:g}]: low must be below high")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"loguniform [{low:g}, {high:g}]: both ends must be above 0")
    return Floats(low, high, log=kind == "loguniform")


def _ints(values: list[Any]) -> Ints:
    if len(values) not in (2, 3) or not all(type(value) is int for value in values):
        raise ValueError(f"int {shown(values)}: whole numbers are expected, [low, high] or [low, high, step]")
    low, high, step = [*values, 1][:3]
    if not low < high:
        raise ValueError(f"int [{low}, {high}]: low must be below high")
    if not 1 <= step <= high - low:
        raise ValueError(f"int [{low}, {high}, {step}]: the step must be 1 to {high - low}")
    if (high - low) // step > 1000:
        raise ValueError(f"int [{low}, {high}, {step}]: at most 1000 values; use a larger step")
    return Ints(low, high, step)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
