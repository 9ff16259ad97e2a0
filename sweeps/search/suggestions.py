"""Every draw of a study, written when it is made: `<study>/suggestions/00007.json`, created once, never replaced.

A study that goes on reads them and draws only what is not there. So which configurations it tries depends on no
version of a library and on no processor, and what a draw knew may be whatever was in by then: it is written down too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pydantic import Field, ValidationError

from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.model.config import Config
from sweeps.frontier.parquet import read_table
from sweeps.frontier.rows import table_uri
from sweeps.study.space import TrialConfig
from sweeps.study.study import Study


class Suggestion(Config):
    """One configuration to try, with the study's seeds; what it was drawn from."""

    suggestion: int = Field(ge=0, description="its number, from 0")
    config: dict[str, Any] = Field(description="the trial's configuration, with the first of the seeds")
    keys: tuple[str, ...] = Field(description="names of its trials, one per seed of the study")
    params: dict[str, Any] | None = Field(
        description="what was drawn, by path in the template; null where the study's space has no such configuration"
    )
    notes: dict[str, Any] = Field({}, description="what the sampler notes of it, such as a generation")
    knew: tuple[tuple[int, int], ...] | None = Field(
        None, description="first and last of the suggestions whose results it was drawn from; null where unknown"
    )
    drawn_by: str = Field("", description="the sampler and its version")

    def trial(self, seed: int) -> TrialConfig:
        """The configuration with a seed."""
        training = {**self.config["training"], "seed": seed}
        return TrialConfig.model_validate({**self.config, "training": training})


class DrawStore(Protocol):
    """Where a study's suggestions are."""

    def read(self) -> list[Suggestion]:
        """All of them, by number."""

    def keep(self, made: Suggestion) -> Suggestion:
        """Write one; what holds from then on, which is another where its number was taken."""


class InMemory:
    """Suggestions of a search that leaves nothing behind."""

    def read(self) -> list[Suggestion]:
        return []

    def keep(self, made: Suggestion) -> Suggestion:
        return made


class Suggestions:
    """The suggestions in a study's folder."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.folder = storage.join(study.root, "suggestions")

    def read(self) -> list[Suggestion]:
        """Those written, and of a study begun before they were those that its rows imply. InputError for damaged ones.

        A file without content is that of a driver killed as it wrote: it is nobody's.
        """
        names = [name for name in storage.versions(self.folder) if name.endswith(".json")]
        found: dict[int, Suggestion] = {}
        for name, content in storage.read_many(self.folder, names):
            if content:
                made = _parsed(content, storage.join(self.folder, name))
                found[made.suggestion] = made
        for made in self._implied():
            found.setdefault(made.suggestion, made)
        return [found[number] for number in sorted(found)]

    def keep(self, made: Suggestion) -> Suggestion:
        uri = storage.join(self.folder, f"{made.suggestion:05d}.json")
        content = json.dumps(made.model_dump(mode="json"), indent=1).encode()
        if storage.create(uri, content):
            return made
        there = storage.read_bytes(uri)
        if not there:
            storage.write_bytes_atomic(uri, content)
            return made
        return _parsed(there, uri)

    def _implied(self) -> Iterable[Suggestion]:
        if not storage.listdir(table_uri(self.study.root, "trials")):
            return
        rows = read_table(self.study.root, "trials", ["trial", "suggestion", "seed", "config"]).to_pylist()
        together: dict[int, dict[int, Mapping[str, Any]]] = {}
        for row in rows:
            if row["suggestion"] is not None and row["config"]:
                together.setdefault(row["suggestion"], {})[row["seed"]] = row
        for number, by_seed in together.items():
            yield _implied_by(self.study, number, by_seed)


def made_of(
    study: Study, number: int, params: Mapping[str, Any], notes: Mapping[str, Any], knew: Iterable[int], drawn_by: str
) -> Suggestion:
    """A suggestion from what was drawn."""
    configs = [study.space.config(params, seed) for seed in study.seeds]
    return Suggestion(
        suggestion=number,
        config=configs[0].model_dump(mode="json"),
        keys=tuple(config.key(number) for config in configs),
        params=dict(params),
        notes=dict(notes),
        knew=spans(sorted(knew)),
        drawn_by=drawn_by,
    )


def spans(numbers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending whole numbers as (first, last) of those that follow each other."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return tuple(found)


def _implied_by(study: Study, number: int, by_seed: Mapping[int, Mapping[str, Any]]) -> Suggestion:
    """What rows of one configuration say of its draw; trials of seeds without a row have the names they would get."""
    raw = json.loads(next(iter(by_seed.values()))["config"])
    raw = {**raw, "training": {**raw["training"], "seed": study.seeds[0]}}
    config = TrialConfig.model_validate(raw)

    def key(seed: int) -> str:
        row = by_seed.get(seed)
        again = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
        return str(row["trial"]) if row is not None else again.key(number)

    return Suggestion(
        suggestion=number,
        config=raw,
        keys=tuple(map(key, study.seeds)),
        params=study.space.params_of(config),
        notes={},
        knew=None,
        drawn_by="an earlier version",
    )


def _parsed(content: bytes, uri: str) -> Suggestion:
    try:
        return Suggestion.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"{uri}: damaged: {' '.join(str(error.errors()[0]['msg']).split())}") from None
