"""What travels to a cluster with a job, and whether all of a study does: nothing is spent where files would lack."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from circuit.tasks import is_file
from sparse_model import storage
from sparse_model.data.config import SourceConfig
from sparse_model.errors import InputError
from sweeps.study.problems import InputErrors
from sweeps.study.study import Study, shipped_studies, study_text
from sweeps.study.yamlfile import parse_yaml

KEEP_OUT = (".git", ".venv", "results", ".env", ".env.*", "*.pem", "id_rsa*", "id_ed25519*", ".aws", ".netrc")
"""Never uploaded, besides what .rayignore and .gitignore name: what is large, and what may hold secrets."""


def travelling(working_dir: str) -> set[Path]:
    """Files below a folder that Ray uploads, by its own rules."""
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    root, found = Path(working_dir).resolve(), set[Path]()
    # The same variable by which Ray is told to upload what git ignores.
    with_ignored = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") == "1"
    quiet = logging.getLogger(f"{__name__}.quiet")
    quiet.disabled = True
    excludes = [_get_excludes(root, list(KEEP_OUT))]
    _dir_travel(root, excludes, lambda path: found.add(path), include_gitignore=not with_ignored, logger=quiet)
    return {path for path in found if path.is_file()}


def check_travels(study: str, asked: Study, working_dir: str) -> None:
    """Every file that a study names is one that the machines of a cluster will have; InputErrors with a line for each
    that is not."""
    root = Path(working_dir).resolve()
    uploaded = travelling(working_dir)
    problems = [] if study in shipped_studies() else list(_study_problems(study, root, uploaded))
    problems += _named_problems(asked, parse_yaml(study_text(study), study), root, uploaded)
    if problems:
        raise InputErrors(problems)


def _study_problems(study: str, root: Path, uploaded: set[Path]) -> Iterator[str]:
    path = Path(study).resolve()
    if not path.is_relative_to(root):
        yield f"study {study}: is not below the working directory {root}, which is what is uploaded"
    elif path not in uploaded:
        yield f"study {study}: is not uploaded: {_why(path, root)}"


def _named_problems(asked: Study, raw: Mapping[str, Any], root: Path, uploaded: set[Path]) -> Iterator[str]:
    """Of tasks and texts in files of this machine, as they are written in the study file."""
    tasks = raw.get("tasks")
    for i, source in enumerate(tasks if isinstance(tasks, list) else ()):
        if is_file(source):
            yield from _local_problem(f"tasks[{i}]", source, asked, root, uploaded)
    for i, entry in enumerate(raw["corpus"]["sources"]):
        if SourceConfig.model_validate(entry).is_files:
            yield from _local_problem(f"corpus.sources[{i}].source", entry["source"], asked, root, uploaded)
    for i, uri in enumerate((raw.get("search") or {}).get("warm_start") or ()):
        yield from _local_problem(f"search.warm_start[{i}]", uri, asked, root, uploaded)


def _local_problem(field: str, written: str, asked: Study, root: Path, uploaded: set[Path]) -> Iterator[str]:
    """Nothing of what lies in an object store, on a disk that holds the storage too, or in the upload."""
    if not storage.is_local(written):
        return
    remedy = "write it relative to the folder that is uploaded, or put it into an object store"
    if os.path.isabs(written) or "://" in written:
        there = Path(storage.filesystem(written)[1])
        mounted = storage.is_local(asked.storage) and there.is_relative_to(storage.filesystem(asked.storage)[1])
        if not mounted:
            yield f"{field}: {written}: is a place on this machine; {remedy}"
        return
    found = [Path(path) for path in glob.glob(str(root / written), recursive=True)]
    if not found:
        yield f"{field}: {written}: is not below the working directory {root}; {remedy}"
    elif not any(path in uploaded or any(file.is_relative_to(path) for file in uploaded) for path in found):
        yield f"{field}: {written}: is not uploaded: {_why(found[0], root)}; {remedy}"


def _why(path: Path, root: Path) -> str:
    inside = path.relative_to(root).parts if path.is_relative_to(root) else ()
    if any(part in KEEP_OUT for part in inside):
        return f"folders {', '.join(KEEP_OUT[:3])} and files that may hold secrets never are"
    return "a .gitignore or .rayignore names it"


def job_environment(named: list[str]) -> dict[str, str]:
    """Environment variables for a job: `NAME=value`, or `NAME` alone for the value here. InputError for others."""
    found = {}
    for text in named:
        name, equals, value = text.partition("=")
        if not name.isidentifier():
            raise InputError(f"--env {text!r}; allowed: NAME=value, or NAME for its value here")
        if not equals and name not in os.environ:
            raise InputError(f"--env {name}: is not set here; allowed: NAME=value, or the name of a variable that is")
        found[name] = value if equals else os.environ[name]
    return found
