"""The study file that is kept beside its results, and whether it is that of the study asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.storage.text import read_text
from sweeps.study.study import Study, read_study


def study_uri(study: Study) -> str:
    """Where the study file is kept beside its results."""
    return storage.join(study.root, "study.yaml")


def study_at(uri: str) -> Study:
    """The study whose folder is at `uri`; InputError where none is."""
    path = storage.join(uri, "study.yaml")
    if not storage.exists(path):
        below = [name for name in storage.listdir(uri) if storage.exists(storage.join(uri, name, "study.yaml"))]
        raise InputError(f"{uri}: no study here (no study.yaml); studies below it: {', '.join(below) or 'none'}")
    return read_study(read_text(path), path)


def earlier_study(study: Study) -> Study | None:
    """The study whose results are in this study's folder, if any."""
    return study_at(study.root) if storage.exists(study_uri(study)) else None


def keep_study(study: Study) -> None:
    """Write the study beside its results."""
    storage.write_bytes_atomic(study_uri(study), study.to_yaml().encode())


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
    """What makes results those of one study; the rest may differ from run to run."""
    return study.model_dump(
        mode="json", exclude={"storage": True, "resources": True, "report": True, "search": {"trials"}}
    )


def differences(before: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(path, value before, value now) of every leaf in which two nested mappings differ."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return [] if before == now else [(path, before, now)]
    found = []
    for key in [*before, *(key for key in now if key not in before)]:
        inner = f"{path}.{key}" if path else str(key)
        found += differences(before.get(key), now.get(key), inner)
    return found
