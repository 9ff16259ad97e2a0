"""One trial of a study, and where its things go. Its key is the name of everything it writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparse_model import storage
from sweeps.study.space import TrialConfig
from sweeps.study.study import Study

TRAINED = "trained.json"
"""File beside a published model: what it was made from, and how its training went."""


@dataclass(frozen=True)
class StudyRun:
    """What all trials of a study share: the study, the URI of its tokens, the attempts of retried trials."""

    study: Study
    data: str
    attempts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One trial and where its things go."""

    run: StudyRun
    key: str
    index: int
    config: TrialConfig

    @classmethod
    def of(cls, config: Mapping[str, Any], run: StudyRun) -> Trial:
        """The trial that Tune was handed as `config` (`Assignment.as_config`)."""
        return cls(run, config["key"], config["index"], TrialConfig.model_validate(config["trial"]))

    @property
    def study(self) -> Study:
        return self.run.study

    @property
    def attempt(self) -> int:
        return self.run.attempts.get(self.key, 0)

    @property
    def data_key(self) -> str:
        """Name of the tokens that it is trained on, which changes with the text."""
        return self.run.data.split("?")[0].rsplit("/", 1)[-1]

    @property
    def model_uri(self) -> str:
        return storage.join(self.study.root, "models", self.key)

    @property
    def trained_uri(self) -> str:
        """The record that the model is published, and how its training went."""
        return storage.join(self.model_uri, TRAINED)

    @property
    def trained_from(self) -> dict[str, Any]:
        """What decides which model it is."""
        return {"data": self.data_key, "config": self.config.canonical_json()}

    @property
    def circuits_uri(self) -> str:
        return storage.join(self.study.root, "circuits", self.key)

    @property
    def train_root(self) -> str:
        """Where Ray Train's runs lie; that of this trial bears its key."""
        return storage.join(self.study.root, "ray", "train")

    @property
    def checkpoints_uri(self) -> str:
        """Where training keeps its state, by which a trial that was broken off is continued on the same text."""
        return storage.join(self.train_root, self.key, f"checkpoints-{self.data_key}")
