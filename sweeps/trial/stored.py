"""What a trial has finished already: its training, the circuits of its tasks, all of its circuits' rows.

A process or a machine that is lost takes nothing with it that is not here. Each record is written last of what it
stands for, and says what that was made from: of another text, model or setting it is none.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from circuit.search.config import SEARCH_VERSION, PruneConfig
from sparse_model import storage
from sweeps.frontier.parquet import read_table
from sweeps.frontier.rows import SCHEMA_VERSION, read_rows, row_uri, write_curve
from sweeps.trial.outcome import TableRow, Trained
from sweeps.trial.places import TRAINED, Trial

if TYPE_CHECKING:  # a trial's own process holds no model: torch would be most of its memory
    from torch import Tensor

    from circuit.tasks import TaskData
    from sparse_model.model.transformer import SparseTransformer

LAST_WRITTEN = "model.safetensors"
"""Of a model's files: a folder with weights is whole."""
ROWS = ".rows"
"""Folder beside a trial's circuits of the rows of finished tasks."""


def keep_training(uri: str, made_from: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Note that the model of a trial is published (by the worker that did it): fields of `Trained`."""
    storage.write_bytes_atomic(uri, json.dumps({"from": made_from, "trained": summary}).encode())


def stored_training(trial: Trial) -> Trained | None:
    """How the trial's training ended, if its model is published."""
    content = _trained(trial, trial.model_uri)
    return None if content is None else Trained(**content["trained"])


def take_training(trial: Trial) -> tuple[str, Trained] | None:
    """URI of the same model in a study of `models_from`, and how its training ended, after its files and its learning
    curve are copied to where this trial's belong; None where no such study has it."""
    for name in trial.study.models_from:
        root = storage.join(trial.study.storage, name)
        for key in storage.listdir(storage.join(root, "models")):
            if key.split("-")[-1] != trial.key.split("-")[-1]:
                continue
            model_uri = storage.join(root, "models", key)
            if (content := _trained(trial, model_uri)) is not None:
                _copy_model(model_uri, trial.model_uri)
                _copy_curve(root, key, trial)
                keep_training(trial.trained_uri, content["from"], content["trained"])
                return model_uri, Trained(**content["trained"])
    return None


def _trained(trial: Trial, model_uri: str) -> dict[str, Any] | None:
    """The record of a published model, if it is the trial's: of its text and its configuration."""
    content = _json(storage.join(model_uri, TRAINED))
    return content if content is not None and content.get("from") == trial.trained_from else None


def _copy_model(source: str, target: str) -> None:
    with tempfile.TemporaryDirectory(prefix="circuit-sweeps-") as scratch:
        for name in sorted(storage.listdir(source), key=LAST_WRITTEN.__eq__):
            if name != TRAINED:
                storage.download(storage.join(source, name), Path(scratch, name))
                storage.upload(Path(scratch, name), storage.join(target, name))


def _copy_curve(root: str, key: str, trial: Trial) -> None:
    own = ["study", "trial", "schema_version"]
    table = read_table(root, "curves")
    rows = table.filter(pc.equal(table["trial"], key)).drop_columns(own).to_pylist()
    write_curve(trial.study.root, trial.study.name, trial.key, rows, trial.attempt)


def stored_circuits(trial: Trial) -> list[TableRow] | None:
    """Rows of all circuits of this attempt, if they are written; `search_version` None where they do not tell."""
    uri = row_uri(trial.study.root, "circuits", trial.key, trial.attempt)
    if not storage.exists(uri):
        return None
    rows = [{"search_version": None} | row for row in read_rows(uri)]
    return [{name: value for name, value in row.items() if name != "schema_version"} for row in rows]


def search_mark(
    model: SparseTransformer,
    task: TaskData,
    config: PruneConfig,
    targets: Sequence[float],
    proofs: str,
    text: Tensor | None,
) -> str:
    """Changes with whatever decides which circuits a task has: model, prompts, settings, text, versions."""
    from circuit.graph.record import fingerprint

    digest = hashlib.sha256(fingerprint(model).encode())
    batches = (task.train, task.heldout)
    tensors = [getattr(batch, name) for batch in batches for name in ("tokens", "length", "right", "wrong")]
    for tensor in (*tensors, *([text] if text is not None else [])):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    asked = [config.model_dump(mode="json"), list(targets), proofs, task.name, SCHEMA_VERSION, SEARCH_VERSION]
    digest.update(json.dumps(asked, sort_keys=True).encode())
    return digest.hexdigest()


def keep_task(circuits_uri: str, task: str, mark: str, circuits: Iterable[str], rows: Sequence[TableRow]) -> None:
    """Note that a task's circuits are all there, under these names, with their rows."""
    content = {"mark": mark, "circuits": list(circuits), "rows": rows}
    storage.write_bytes_atomic(_task_uri(circuits_uri, task), json.dumps(content).encode())


def stored_task(circuits_uri: str, task: str, mark: str) -> list[TableRow] | None:
    """Rows of a task whose circuits are there, if the same search found them."""
    content = _json(_task_uri(circuits_uri, task))
    if content is None or content.get("mark") != mark:
        return None
    if set(content["circuits"]) - set(storage.listdir(circuits_uri)):
        return None
    rows: list[TableRow] = content["rows"]
    return rows


def _task_uri(circuits_uri: str, task: str) -> str:
    return storage.join(circuits_uri, ROWS, f"{task}.json")


def _json(uri: str) -> dict[str, Any] | None:
    """A record's content; None where there is none, or none that can be read."""
    if not storage.exists(uri):
        return None
    try:
        content = json.loads(storage.read_bytes(uri))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
