"""The study file that is kept beside its results, and whether it is that of the study asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import yaml

from circuit.tasks import is_file
from sparse_model import storage
from sparse_model.data.config import SourceConfig
from sparse_model.errors import InputError
from sparse_model.storage.text import read_text
from sweeps.study.study import Study, read_study
from sweeps.study.yamlfile import parse_yaml

TASK_FILES = "tasks"
"""Folder beside the results, of the files of tasks: they travel with the study."""


def study_uri(study: Study) -> str:
    """Where the study file is kept beside its results."""
    return storage.join(study.root, "study.yaml")


def study_at(uri: storage.PathOrURI) -> Study:
    """The study whose folder is at `uri`; InputError where none is. Files of tasks are those kept with it."""
    uri = storage.as_uri(uri)
    path = storage.join(uri, "study.yaml")
    if not storage.exists(path):
        below = [name for name in storage.listdir(uri) if storage.exists(storage.join(uri, name, "study.yaml"))]
        raise InputError(f"{uri}: no study here (no study.yaml); studies below it: {', '.join(below) or 'none'}")
    text = read_text(path)
    raw = parse_yaml(text, path)
    tasks = raw.get("tasks")
    if isinstance(tasks, list) and any(is_file(str(source)) for source in tasks):
        kept = set(storage.listdir(storage.join(uri, TASK_FILES)))
        raw["tasks"] = [
            storage.join(uri, TASK_FILES, name) if (name := _file_name(str(source))) in kept else source
            for source in tasks
        ]
        text = yaml.safe_dump(raw)
    return read_study(text, path)


def earlier_study(study: Study) -> Study | None:
    """The study whose results are in this study's folder, if any."""
    return study_at(study.root) if storage.exists(study_uri(study)) else None


def keep_study(study: Study) -> Study:
    """Write the study beside its results, files of tasks too; the study as every machine can read it."""
    sources = []
    for source in study.task_sources:
        if is_file(source):
            copy = storage.join(study.root, TASK_FILES, _file_name(source))
            if not storage.exists(copy):
                storage.write_bytes_atomic(copy, storage.read_bytes(source))
            source = copy
        sources.append(source)
    storage.write_bytes_atomic(study_uri(study), study.to_yaml().encode())
    return study if isinstance(study.tasks, str) else study.model_copy(update={"tasks": tuple(sources)})


def _file_name(source: str) -> str:
    return f"{source.split('?')[0].rsplit('/', 1)[-1]}"


def check_storage(study: Study) -> None:
    """The study's folder can be written, and holds this study if it holds one; InputError if not."""
    storage.check_writable(study.storage)
    earlier = earlier_study(study)
    if earlier is None:
        return
    for path, before, now in differences(_identity(earlier), _identity(study)):
        raise InputError(f"{path} is {now!r}, but {study_uri(study)} has {before!r}; give a changed study another name")
    if study.search.trials < earlier.search.trials:
        raise InputError(
            f"search.trials is {study.search.trials}, but {study_uri(study)} has {earlier.search.trials}; "
            "it can be raised, not lowered"
        )


def _identity(study: Study) -> dict[str, Any]:
    """What makes results those of one study; the rest may differ from run to run. Where files are is not part of it.

    What is in files of text is seen to by their tokens' key.
    """
    asked = study.model_dump(
        mode="json",
        exclude={
            "storage": True,
            "models_from": True,
            "resources": True,
            "report": True,
            "callbacks": True,
            "pause_after": True,
            "search": {"trials"},
        },
    )
    if not isinstance(study.tasks, str):
        asked["tasks"] = [_task_identity(source) for source in study.tasks]
    for source in asked["corpus"]["sources"]:
        if SourceConfig.model_validate(source).is_files and storage.is_local(source["source"]):
            source["source"] = "files"
    asked["search"]["warm_start"] = [
        _file_name(uri.rstrip("/")) if storage.is_local(uri) else uri for uri in study.search.warm_start
    ]
    return asked


def _task_identity(source: str) -> str:
    if not is_file(source):
        return source
    return f"{_file_name(source)} of sha256 {hashlib.sha256(storage.read_bytes(source)).hexdigest()[:12]}"


def differences(before: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(path, value before, value now) of every leaf in which two nested mappings differ."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return [] if before == now else [(path, before, now)]
    found = []
    for key in [*before, *(key for key in now if key not in before)]:
        inner = f"{path}.{key}" if path else str(key)
        found += differences(before.get(key), now.get(key), inner)
    return found
