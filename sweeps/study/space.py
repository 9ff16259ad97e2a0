"""The space a study searches: a template of a trial's configuration, some of whose fields are distributions.

`kind` is sparse or dense, or a choice of both. `model` and `training` hold for every trial; `sparse` and `dense` each
hold a `model` and a `training` of their own that add to them or override them for trials of that kind. A field is
named by its path: `training.lr` in a trial, `training.lr` or `sparse.training.lr` in the template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Literal

from pydantic import Field

from sparse_model.model.config import RUN_ONLY, SECTIONS, Config, ModelConfig, TrainConfig
from sweeps.study.distributions import Choice, Distribution, Sampler
from sweeps.study.problems import shown

TrialKind = Literal["sparse", "dense"]
TRIAL_KINDS: tuple[TrialKind, ...] = ("sparse", "dense")
DENSE_MEANS = {"model.activation_fraction": 1.0, "training.fraction": 1.0, "training.embedding_fraction": None}
"""What makes a trial dense, and so is nobody else's to set in a dense trial."""

JOINT_FIELDS = ("training.fraction", "training.embedding_fraction", "training.min_alive", "training.dense_biases")
"""Besides all of `model`, the fields whose validity depends on one another."""
MOST_CORNERS = 4096


class TrialConfig(Config):
    """One sampled configuration: everything that decides which model a trial trains."""

    kind: TrialKind = Field(description="sparse, or dense: fraction 1 and no AbsTopK")
    model: ModelConfig
    training: TrainConfig

    def canonical_json(self) -> str:
        """The configuration as JSON with sorted keys: equal configurations give equal bytes."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def key(self, index: int) -> str:
        """The name of the trial that is the study's `index`-th suggestion, e.g. t00007-1a2b3c4d."""
        return f"t{index:05d}-{hashlib.sha256(self.canonical_json().encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Entry:
    """A field of the template: where it is written there, and its constant or distribution."""

    path: str
    value: Any

    @property
    def is_sampled(self) -> bool:
        return isinstance(self.value, Distribution)


@dataclass(frozen=True)
class Space:
    """A checked template. `entries[kind]` maps the fields of a trial of that kind to what the template says of them."""

    kind: Choice | TrialKind
    entries: Mapping[TrialKind, Mapping[str, Entry]]
    vocab_size: int

    def kinds(self) -> tuple[TrialKind, ...]:
        """The kinds of trial the space has."""
        return self.kind.values if isinstance(self.kind, Choice) else (self.kind,)  # type: ignore[return-value]

    def sampled(self, kind: TrialKind) -> dict[str, Distribution]:
        """Fields of a trial of this kind that are drawn, with their distributions."""
        return {field: entry.value for field, entry in self.entries[kind].items() if entry.is_sampled}

    def corner_values(self, field: str) -> set[Any]:
        """Every constant, choice and range end that a field has in the trials of the space."""
        found: set[Any] = set()
        section, name = field.split(".")
        for kind in self.kinds():
            entry = self.entries[kind].get(field) or Entry(field, SECTIONS[section].model_fields[name].default)
            found.update(entry.value.corners() if entry.is_sampled else (entry.value,))
        return found

    def most_edges(self) -> int:
        """Weights that can be edges of a circuit, in the largest model of the space."""
        return max(
            _edges_of(build_config(kind, values | {"training.seed": 0, "model.vocab_size": self.vocab_size}).model)
            for kind in self.kinds()
            for values in corners(self.entries[kind])
        )

    def config(self, params: Mapping[str, Any], seed: int) -> TrialConfig:
        """The trial that `params` (template path → drawn value, as `suggest` named them) stands for."""
        kind = params.get("kind", self.kind)
        values = {
            field: params[entry.path] if entry.is_sampled else entry.value
            for field, entry in self.entries[kind].items()
        }
        return build_config(kind, values | {"training.seed": seed, "model.vocab_size": self.vocab_size})

    def params(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """The drawn values that give the trial described by `entry` (as in `search.try_first`), or part of it.

        ValueError names what is not in the space.
        """
        kind = self._kind_of(entry)
        params = {"kind": kind} if isinstance(self.kind, Choice) else {}
        for field, value in flatten({k: v for k, v in entry.items() if k != "kind"}):
            if (written := self.entries[kind].get(field)) is None:
                raise ValueError(f"{field} is not in the template of {kind} trials")
            if not written.is_sampled:
                if value != written.value:
                    raise ValueError(f"{field} {shown(value)}; the template fixes it at {shown(written.value)}")
            elif value not in written.value:
                raise ValueError(f"{field} {shown(value)} is outside the space; allowed: {written.value}")
            else:
                params[written.path] = value
        return params

    def params_of(self, config: TrialConfig) -> dict[str, Any] | None:
        """The drawn values that give this configuration, whatever its seed; None if it is not in the space."""
        entry: dict[str, Any] = {"kind": config.kind}
        for field in self.sampled(config.kind) if config.kind in self.kinds() else ():
            section, name = field.split(".")
            entry.setdefault(section, {})[name] = getattr(getattr(config, section), name)
        try:
            params = self.params(entry)
        except ValueError:
            return None
        return params if _comparable(self.config(params, config.training.seed)) == _comparable(config) else None

    def _kind_of(self, entry: Mapping[str, Any]) -> TrialKind:
        kind = entry.get("kind", None if isinstance(self.kind, Choice) else self.kind)
        if kind not in self.kinds():
            raise ValueError(f"kind {shown(kind)}; allowed: {', '.join(self.kinds())}")
        return kind  # type: ignore[no-any-return]


def _comparable(config: TrialConfig) -> TrialConfig:
    """A configuration without what leads to the same model by other ways, or to one that differs by rounding."""
    asked = {name: TrainConfig.model_fields[name].default for name in (*RUN_ONLY, "dtype")}
    return config.model_copy(update={"training": config.training.model_copy(update=asked)})


def suggest(space: Space, sampler: Sampler) -> None:
    """Draw one trial from the space: Optuna's define-by-run function (a `functools.partial` of it can be pickled)."""
    kind = space.kind.draw(sampler, "kind") if isinstance(space.kind, Choice) else space.kind
    for entry in space.entries[kind].values():
        if entry.is_sampled:
            entry.value.draw(sampler, entry.path)


def build_config(kind: TrialKind, values: Mapping[str, Any]) -> TrialConfig:
    """A trial's configuration from its fields by path; pydantic's ValidationError for what no model can be."""
    sections: dict[str, dict[str, Any]] = {"model": {}, "training": {}}
    for field, value in (dict(values) | (DENSE_MEANS if kind == "dense" else {})).items():
        section, name = field.split(".")
        sections[section][name] = value
    return TrialConfig.model_validate({"kind": kind, **sections})


def corners(entries: Mapping[str, Entry]) -> Iterator[dict[str, Any]]:
    """Field values at every corner that matters: jointly over fields that depend on one another, else one by one.

    ValueError where there are too many to look at.
    """
    ends = {field: entry.value.corners() if entry.is_sampled else (entry.value,) for field, entry in entries.items()}
    joint = {field: values for field, values in ends.items() if _is_joint(field)}
    if (count := prod(map(len, joint.values()))) > MOST_CORNERS:
        raise ValueError(f"{count} combinations of choices and range ends to check; at most {MOST_CORNERS}")
    first = {field: values[0] for field, values in ends.items()}
    for values in product(*joint.values()):
        yield first | dict(zip(joint, values, strict=True))
    for field, entry in entries.items():
        alone = () if _is_joint(field) else ends[field][1:]
        for value in (*alone, *(entry.value.inside() if entry.is_sampled else ())):
            yield first | {field: value}


def flatten(nested: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(`section.field`, value) of a mapping of sections; ValueError for anything else."""
    for section, fields in nested.items():
        if section not in SECTIONS or not isinstance(fields, Mapping):
            raise ValueError(f"{section}; allowed: kind, and mappings {' and '.join(SECTIONS)}")
        for name, value in fields.items():
            yield f"{section}.{name}", value


def _edges_of(model: ModelConfig) -> int:
    """Weights of a model's qkv, output, up and down projections."""
    read = model.width("attn.in")
    attention = 3 * read * model.d_attn + model.d_attn * model.d_model
    return model.n_layer * (attention + read * model.d_mlp_ + model.d_mlp_ * model.d_model)


def _is_joint(field: str) -> bool:
    return field.startswith("model.") or field in JOINT_FIELDS
