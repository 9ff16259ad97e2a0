"""From a template as written in a study file to a `Space`, with every mistake in it named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from sparse_model.errors import InputError
from sparse_model.model.config import SECTIONS, ModelConfig, TrainConfig
from sparse_model.sparsity.projection import check_budget
from sweeps.study.distributions import Choice, parse_distribution
from sweeps.study.problems import Problem, pydantic_problems, shown, unknown_key
from sweeps.study.space import (
    DENSE_MEANS,
    TRIAL_KINDS,
    Entry,
    Space,
    TrialConfig,
    TrialKind,
    build_config,
    corners,
)

SET_ELSEWHERE = {"model.vocab_size": "tokenizer.vocab_size", "training.seed": "seeds"}


def read_template(raw: Mapping[str, Any], vocab_size: int, workers: int) -> tuple[Space | None, list[Problem]]:
    """The space a template describes, and all that is wrong with it; no space where its shape is not understood."""
    problems: list[Problem] = []
    for key in raw:
        if key not in ("kind", *SECTIONS, *TRIAL_KINDS):
            problems.append(Problem(f"trial.{key}", unknown_key(key, ("kind", *SECTIONS, *TRIAL_KINDS))))
    kind = _kind(raw.get("kind"), problems)
    written = _entries(raw, problems)
    if kind is None:
        return None, problems
    space = Space(kind, {k: _of_kind(k, written) for k in TRIAL_KINDS}, vocab_size)
    for possible in space.kinds():
        problems += _misplaced(possible, space.entries[possible], [problem.path for problem in problems])
        problems += _bad_corners(possible, space, workers)
    return space, _first_of_each(problems)


def _kind(raw: Any, problems: list[Problem]) -> Choice | TrialKind | None:
    try:
        kind = parse_distribution(raw) if isinstance(raw, dict) else raw
    except ValueError as error:
        problems.append(Problem("trial.kind", str(error)))
        return None
    values = kind.values if isinstance(kind, Choice) else (kind,)
    if not all(value in TRIAL_KINDS for value in values):
        problems.append(Problem("trial.kind", f"{shown(raw)}; allowed: sparse, dense or {{choice: [sparse, dense]}}"))
        return None
    return kind  # type: ignore[return-value]


def _entries(raw: Mapping[str, Any], problems: list[Problem]) -> dict[str, Entry]:
    """Every field of the template by its path, those that cannot be read left out and named."""
    found = {}
    for scope in ("", *TRIAL_KINDS):
        part = raw.get(scope, {}) if scope else raw
        for path, value in _fields(scope, part, problems):
            try:
                parsed = parse_distribution(value) if isinstance(value, dict) else value
            except ValueError as error:
                problems.append(Problem(f"trial.{path}", str(error)))
            else:
                found[path] = Entry(path, parsed)
    return found


def _fields(scope: str, part: Any, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    prefix = f"{scope}." if scope else ""
    if not isinstance(part, Mapping):
        problems.append(Problem(f"trial.{scope}", f"{shown(part)}: mappings model and training are expected"))
        return
    if scope:
        for key in sorted(part.keys() - SECTIONS.keys()):
            problems.append(Problem(f"trial.{prefix}{key}", unknown_key(key, SECTIONS)))
    for section, model in SECTIONS.items():
        fields = part.get(section, {})
        if not isinstance(fields, Mapping):
            problems.append(Problem(f"trial.{prefix}{section}", f"{shown(fields)}: a mapping is expected"))
            continue
        for name, value in fields.items():
            path = f"{prefix}{section}.{name}"
            if (elsewhere := SET_ELSEWHERE.get(f"{section}.{name}")) is not None:
                problems.append(Problem(f"trial.{path}", f"is set by {elsewhere}, not here"))
            elif name not in model.model_fields:
                allowed = [f for f in model.model_fields if f"{section}.{f}" not in SET_ELSEWHERE]
                problems.append(Problem(f"trial.{path}", unknown_key(name, allowed)))
            else:
                yield path, value


def _of_kind(kind: TrialKind, written: Mapping[str, Entry]) -> dict[str, Entry]:
    """Fields of trials of one kind: the common ones, and over them those of the kind's own section."""
    common = {path: entry for path, entry in written.items() if path.split(".")[0] in SECTIONS}
    own = {path.removeprefix(f"{kind}."): entry for path, entry in written.items() if path.startswith(f"{kind}.")}
    return common | own


def _misplaced(kind: TrialKind, entries: Mapping[str, Entry], known_bad: list[str]) -> Iterator[Problem]:
    """Sparse trials need a fraction, dense trials have none."""
    unreadable = any(path.endswith("training.fraction") for path in known_bad)
    if kind == "sparse" and "training.fraction" not in entries and not unreadable:
        yield Problem("trial.sparse.training.fraction", "missing; sparse trials need one in (0, 1]")
    for field in DENSE_MEANS if kind == "dense" else ():
        if field in entries:
            path = entries[field].path
            where = "" if path.startswith("dense.") else f"; write it under trial.sparse.{field.split('.')[0]}"
            yield Problem(f"trial.{path}", f"dense trials have none (theirs is {DENSE_MEANS[field]}){where}")


def _bad_corners(kind: TrialKind, space: Space, workers: int) -> Iterator[Problem]:
    entries = {
        field: entry for field, entry in space.entries[kind].items() if kind == "sparse" or field not in DENSE_MEANS
    }
    try:
        for values in corners(entries):
            yield from _bad_values(kind, values | {"model.vocab_size": space.vocab_size}, entries, workers)
    except ValueError as error:
        yield Problem("trial", str(error))


def _bad_values(
    kind: TrialKind, values: dict[str, Any], entries: Mapping[str, Entry], workers: int
) -> Iterator[Problem]:
    """Everything wrong with one configuration; a field that fails alone is set aside, and the rest is judged too."""
    try:
        config = build_config(kind, values)
    except ValidationError as error:
        broken = set()
        for detail, problem in zip(error.errors(), _located(error, entries), strict=True):
            broken.add(".".join(map(str, detail["loc"][:2])))
            yield problem
        rest = {field: value for field, value in values.items() if field not in broken}
        if len(rest) < len(values):
            yield from _bad_values(kind, rest, entries, workers)
        return
    if config.training.batch_size % workers:
        path = _path("training.batch_size", entries)
        yield Problem(path, f"{config.training.batch_size} is not a multiple of the {workers} resources.workers")
    if (refusal := _budget_refusal(config.model, _budget_part(config.training))) is not None:
        yield Problem(_path("training.fraction", entries), refusal)


def _located(error: ValidationError, entries: Mapping[str, Entry]) -> Iterator[Problem]:
    """The problems of an error, under the paths at which the template has the fields."""
    for problem in pydantic_problems(error, TrialConfig):
        field = ".".join(problem.path.split(".")[:2]).split("[")[0]
        if "." in field:
            yield Problem(_path(field, entries), problem.message)
        else:
            # Said of several fields together, whichever section they are in.
            yield Problem(f"trial.{field}", problem.message)


def _path(field: str, entries: Mapping[str, Entry]) -> str:
    return f"trial.{entries[field].path if field in entries else field}"


def _budget_part(recipe: TrainConfig) -> TrainConfig:
    names = ("fraction", "embedding_fraction", "min_alive", "dense_biases")
    return TrainConfig.model_validate({name: getattr(recipe, name) for name in names})


@lru_cache(maxsize=10_000)
def _budget_refusal(model: ModelConfig, recipe: TrainConfig) -> str | None:
    try:
        check_budget(model, recipe)
    except InputError as error:
        return str(error)
    return None


def _first_of_each(problems: list[Problem]) -> list[Problem]:
    """One problem per field: many corners fail for the same reason. Of fields together, each thing once."""
    together = [f"trial.{section}" for section in SECTIONS]
    keyed = {(p.path, re.sub(r"\d", "", p.message) if p.path in together else ""): p for p in reversed(problems)}
    return list(keyed.values())[::-1]
