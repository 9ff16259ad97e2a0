"""A study: one YAML file that says what is trained on what, in which space, how often, and where results go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from circuit.graph.evidence import Level
from circuit.search.config import PruneConfig
from circuit.tasks import TASKS, check_source, is_file, source_name
from sparse_model import storage
from sparse_model.data.config import CorpusConfig, TokenizerConfig
from sparse_model.data.shard_files import CACHE_BYTES
from sparse_model.distributed.kinds import Parallel
from sparse_model.errors import InputError
from sparse_model.model.config import Config
from sparse_model.storage.paths import URIField
from sparse_model.storage.store_errors import check_no_credentials, redacted
from sparse_model.storage.text import decoded
from sweeps.study.problems import InputErrors, Problem, pydantic_problems, shown
from sweeps.study.space import Space
from sweeps.study.template import read_template
from sweeps.study.yamlfile import parse_yaml


class SearchConfig(Config):
    """How configurations are picked."""

    trials: int = Field(
        ge=1, description="different configurations to try in all; may be raised later to continue a study"
    )
    sampler: Literal["tpe", "nsga2", "random"] = Field("tpe", description="Optuna's sampler, with two objectives")
    seed: int = Field(0, ge=0, lt=2**32, description="of the sampler")
    startup: int = Field(4, ge=0, description="configurations drawn at random before tpe learns; `try_first` counts")
    in_flight: int = Field(
        2,
        ge=1,
        description="configurations without a result yet, at most; each is drawn from all results that are in by "
        "then, and stored: a study that goes on tries what it has drawn",
    )
    try_first: tuple[dict[str, Any], ...] = Field((), description="trials, or parts of them, to begin with")
    warm_start: tuple[URIField, ...] = Field(
        (),
        description="folders or URIs of earlier studies to learn from: of their trials, those with the same fixed "
        "fields, tokens, tasks and target",
    )

    @field_validator("warm_start")
    @classmethod
    def _check_warm_start(cls, uris: tuple[str, ...]) -> tuple[str, ...]:
        for uri in uris:
            check_no_credentials(uri)
        return tuple(_absolute(uri) for uri in uris)


class ResourceConfig(Config):
    """What one trial takes, and how many run at a time."""

    workers: int = Field(1, ge=1, description="data-parallel training workers of a trial")
    cpus_per_worker: int = Field(1, ge=1, description="CPU cores of a training worker")
    gpus_per_worker: float = Field(
        0, ge=0, description="GPUs of a training worker: a whole number, or with one worker a part of one below 1"
    )
    parallel: Parallel = Field(
        "ddp",
        description="ddp: every worker holds the whole model; fsdp: each holds its shard of weights, gradients and "
        "moments, for models too large for one. Changes results by rounding only",
    )
    concurrency: int = Field(2, ge=1, description="trials at a time; fewer where a single machine has too few cores")
    cpus_per_pruning_task: int = Field(1, ge=1, description="CPU cores of the search of one circuit")
    gpus_per_pruning_task: float = Field(
        0,
        ge=0,
        le=1,
        description="part of a GPU of the search of one circuit, so that several share it, or 1; 0: CPU cores alone",
    )
    pruning_tasks: int | None = Field(
        None,
        ge=1,
        description="circuits searched at a time by a trial; as many as its training cores allow if left out",
    )

    pruning_resource: str | None = Field(
        None,
        description="custom Ray resource that pruning tasks take as many of as cores, so that they run on nodes of "
        "their own; cluster.yaml calls it pruner",
    )

    cache_gigabytes: float = Field(
        CACHE_BYTES / 1e9,
        gt=0,
        description="disk of each machine, in GB (a billion bytes), for copies of tokens that lie in an object store",
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _check_gpus(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"{gpus:g}; allowed: whole numbers, and parts of one GPU below 1")
        return gpus

    @model_validator(mode="after")
    def _check_shared_gpu(self) -> Self:
        if 0 < self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError(
                f"gpus_per_worker {self.gpus_per_worker:g} with {self.workers} workers; "
                "allowed: part of a GPU with one worker, or whole GPUs"
            )
        return self

    @model_validator(mode="after")
    def _check_pruning(self) -> Self:
        if self.pruning_resource and self.gpus_per_pruning_task:
            raise ValueError(
                f"pruning_resource {self.pruning_resource!r} and gpus_per_pruning_task {self.gpus_per_pruning_task:g}; "
                "allowed: one of the two"
            )
        return self

    @property
    def cache_bytes(self) -> int:
        """The same in bytes."""
        return int(self.cache_gigabytes * 1e9)

    @property
    def cpus(self) -> int:
        """CPU cores of one trial."""
        return max(self.workers * self.cpus_per_worker, self.cpus_per_pruning_task)

    @property
    def gpus(self) -> float:
        """GPUs of one trial."""
        return max(self.workers * self.gpus_per_worker, self.gpus_per_pruning_task)

    @property
    def devices(self) -> float:
        """GPUs that train a trial, a part of one included, or CPU cores where it asks for no GPU."""
        return self.workers * (self.gpus_per_worker or self.cpus_per_worker)

    @property
    def device_name(self) -> str:
        """What `devices` are."""
        return "GPU" if self.gpus_per_worker else "CPU core"

    @property
    def bundles(self) -> dict[str, dict[str, float]]:
        """What has to be free on one machine at a time: for each process of a trial, by what it does."""
        training = {"CPU": float(self.cpus_per_worker), "GPU": float(self.gpus_per_worker)}
        pruning = {"CPU": float(self.cpus_per_pruning_task), "GPU": float(self.gpus_per_pruning_task)}
        if self.pruning_resource:
            pruning[self.pruning_resource] = float(self.cpus_per_pruning_task)
        return {"a training worker": training, "a pruning task": pruning}

    @property
    def pruning_parallel(self) -> int:
        """Circuits searched at a time by a trial, default applied."""
        return self.pruning_tasks or max(1, self.cpus // self.cpus_per_pruning_task)


class Study(Config):
    """One study, checked. `load_study` reads one from a file and names every mistake in it."""

    name: str = Field(description="names the study's folder below the storage")
    storage: URIField = Field(
        "./results", min_length=1, validate_default=True, description="folder or fsspec URI below which all results go"
    )
    corpus: CorpusConfig = Field(description="the text")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="how it becomes tokens")
    tasks: Literal["all"] | tuple[URIField, ...] = Field(
        "all", description="names of tasks (see `sweeps tasks`) and .jsonl files of pairs, or all that have a name"
    )
    trial: dict[str, Any] = Field(description="template of a trial: kind, model, training, sparse, dense")
    search: SearchConfig = Field(description="how configurations are picked")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="every configuration is trained with each seed")
    models_from: tuple[str, ...] = Field(
        (),
        description="names of studies below the same storage: a model that one of them has trained, of the same text "
        "and configuration, is copied, not trained again",
    )
    resources: ResourceConfig = Field(
        default_factory=lambda: ResourceConfig.model_validate({}), description="what a trial takes"
    )
    pruning: PruneConfig = Field(
        default_factory=lambda: PruneConfig.model_validate({}), description="the search of a circuit"
    )
    proofs: Level = Field(
        "basic", description="made of every circuit: basic ones, or full, which take some forty times the search"
    )
    target_losses: tuple[float, ...] = Field(
        (0.15,), min_length=1, description="task losses to find circuits at, in nats; the first is the study's target"
    )
    callbacks: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        (), description="trackers that are told of every trial; files under logs where they have no server"
    )
    pause_after: int = Field(
        5, ge=0, description="trials in a row that fail for one reason, after which the study pauses; 0: never"
    )
    report: Literal["front", "all", "none"] = Field(
        "front",
        description="pages of circuits in the report that a run ends with: front, of those that count of trials on the "
        "front; all, of all; none: no report",
    )
    min_tasks_solved: int = Field(
        1, ge=1, description="a trial that solves fewer tasks stays off the frontier: its mean is over too few circuits"
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return storage.safe_name(name)

    @field_validator("models_from")
    @classmethod
    def _check_models_from(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(storage.safe_name, names))

    @field_validator("storage")
    @classmethod
    def _absolute(cls, uri: str) -> str:
        """A local folder is meant from where the command was given: workers have other working directories."""
        check_no_credentials(uri)
        return _absolute(uri)

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(tasks, str):
            return tasks
        for name in tasks:
            if not is_file(name) and name not in TASKS:
                raise ValueError(f"unknown task {name!r}; allowed: all, .jsonl files, or names from {', '.join(TASKS)}")
        _distinct(tuple(source_name(source) for source in tasks))
        return tuple(_absolute(source) if is_file(source) else source for source in tasks)

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"{shown(seed)}; allowed: 0 to 2**63 - 1")
        return _distinct(seeds)

    @field_validator("target_losses")
    @classmethod
    def _check_targets(cls, targets: tuple[float, ...]) -> tuple[float, ...]:
        if not min(targets) > 0:
            raise ValueError(f"{min(targets)}; allowed: above 0")
        return _distinct(targets)

    @field_validator("pruning", mode="before")
    @classmethod
    def _check_pruning(cls, pruning: Any) -> Any:
        if isinstance(pruning, Mapping) and "target_loss" in pruning:
            raise ValueError("target_loss is set by target_losses, not here")
        return pruning

    @cached_property
    def space(self) -> Space:
        """The space that `trial` describes."""
        space, problems = read_template(self.trial, self.tokenizer.vocab_size, self.resources.workers)
        if space is None or problems:
            raise InputErrors(map(str, problems))
        return space

    @property
    def task_sources(self) -> tuple[str, ...]:
        """The tasks as `task_data` takes them, `all` spelled out."""
        return tuple(TASKS) if isinstance(self.tasks, str) else self.tasks

    @property
    def target_loss(self) -> float:
        """The task loss at which circuits are compared, in nats."""
        return self.target_losses[0]

    @cached_property
    def unsolved_edges(self) -> int:
        """Edges that the sampler is told for a task without a circuit that counts: all that the largest model of the
        space could have, which is more than any circuit has."""
        return self.space.most_edges()

    @property
    def root(self) -> str:
        """URI of the study's folder."""
        return storage.join(self.storage, self.name)

    def to_yaml(self) -> str:
        """The study with every default spelled out, as it is stored beside its results."""
        content = self.model_dump(mode="json", exclude={"pruning": {"target_loss"}})
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def load_study(name: storage.PathOrURI, storage_uri: storage.PathOrURI | None = None) -> Study:
    """The study in a file, or a shipped one by its name; `storage_uri` takes the place of its `storage`.

    Raises InputErrors with one line for every mistake in it.
    """
    where, text = _find(storage.as_uri(name))
    return read_study(text, where, storage_uri)


def read_study(text: str, where: str, storage_uri: storage.PathOrURI | None = None) -> Study:
    """The study in a YAML text; `where` is what messages call it."""
    raw = parse_yaml(text, where)
    if storage_uri is not None:
        raw["storage"] = storage.as_uri(storage_uri)
    study: Study | None = None
    problems: list[Problem] = []
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        problems += pydantic_problems(error, Study)
    problems += _together_problems(study) if study else ()
    problems += _space_problems(raw)
    problems += _file_problems(study.tasks if study else ())
    if problems or study is None:
        raise InputErrors(f"{where}: {problem}" for problem in problems)
    return study


def shipped_studies() -> list[str]:
    """Names of the studies inside the package."""
    folder = resources.files("sweeps.study") / "shipped"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def study_text(name: str) -> str:
    """What is written in a study file, or in a shipped one; InputError where there is none."""
    return _find(name)[1]


def _find(name: str) -> tuple[str, str]:
    if name in shipped_studies():
        return name, (resources.files("sweeps.study") / "shipped" / f"{name}.yaml").read_text(encoding="utf-8")
    return name, decoded(_study_bytes(name), f"study {redacted(name)}")


def _study_bytes(name: str) -> bytes:
    try:
        return storage.read_bytes(name)
    except InputError as error:
        raise InputError(f"study {redacted(name)}: {error}; shipped studies: {', '.join(shipped_studies())}") from None


def _together_problems(study: Study) -> Iterator[Problem]:
    """Mistakes that lie in several fields together."""
    names = [source_name(source) for source in study.task_sources]
    for name in study.pruning.faithful_tasks or ():
        if name not in names:
            yield Problem("pruning.faithful_tasks", f"{name!r}; allowed: {', '.join(names)}")
    if study.min_tasks_solved > len(study.task_sources):
        yield Problem(
            "min_tasks_solved", f"{study.min_tasks_solved}; allowed: up to the {len(study.task_sources)} tasks"
        )
    if len(study.search.try_first) > study.search.trials:
        yield Problem(
            "search.try_first", f"{len(study.search.try_first)} trials; search.trials is {study.search.trials}"
        )


def _space_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Mistakes in the template and in `search.try_first`, which need values from elsewhere, if those can be had."""
    if not isinstance(raw.get("trial"), Mapping):
        return
    vocab_size = _sound(raw, "tokenizer", "vocab_size", least=257, default=2048)
    workers = _sound(raw, "resources", "workers", least=1, default=1)
    space, problems = read_template(raw["trial"], vocab_size, workers)
    yield from problems
    search = raw.get("search")
    first = search.get("try_first", []) if isinstance(search, Mapping) else []
    for i, entry in enumerate(first if space is not None and isinstance(first, list) else []):
        try:
            if isinstance(entry, Mapping) and space is not None:
                space.params(entry)
        except ValueError as error:
            yield Problem(f"search.try_first[{i}]", str(error))


def _file_problems(tasks: str | tuple[str, ...]) -> Iterator[Problem]:
    """Mistakes in files of tasks, as far as they can be seen without a tokenizer."""
    for i, source in enumerate(() if isinstance(tasks, str) else tasks):
        try:
            check_source(source)
        except InputError as error:
            yield from (Problem(f"tasks[{i}]", line) for line in str(error).splitlines())


def _sound(raw: Mapping[str, Any], section: str, field: str, *, least: int, default: int) -> int:
    """A whole number that is used to check others; its own mistakes are reported where it stands."""
    part = raw.get(section)
    value = part.get(field, default) if isinstance(part, Mapping) else default
    return value if type(value) is int and value >= least else default


def _absolute(uri: str) -> str:
    return str(Path(storage.filesystem(uri)[1])) if storage.is_local(uri) else uri


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{list(values)}; allowed: one or more, each once")
    return values
