"""Warm start: trials of earlier studies that the search of a new one learns from before it draws anything.

A row counts if it could be one of the new study's: its configuration is in the space, with the same fixed fields, on
the same tokens, with as many tasks at the same target loss, its circuits found by today's search and counted as rows
count them now. Figures of anything else are not comparable.
They are read once and kept in the new study's folder, so that the search stays a function of what lies there.
"""

from __future__ import annotations

import json
from typing import Any

from optuna.trial import FrozenTrial

from circuit.search.config import SEARCH_VERSION
from sparse_model import storage
from sweeps.frontier.queries import Frontier
from sweeps.frontier.rows import SCHEMA_VERSION
from sweeps.search.objectives import objectives
from sweeps.search.sampling import finished_trial
from sweeps.study.space import TrialConfig
from sweeps.study.study import Study


def warm_trials(study: Study, data_key: str) -> list[FrozenTrial]:
    """The trials a study starts warm with, as Optuna knows trials. InputError for a URI without a frontier."""
    if not study.search.warm_start:
        return []
    uri = storage.join(study.root, "warm_start.json")
    if not storage.exists(uri):
        storage.write_bytes_atomic(uri, json.dumps(_fitting(study, data_key), indent=1).encode())
    kept = json.loads(storage.read_bytes(uri))
    found = (
        finished_trial(study.space, TrialConfig.model_validate(entry["config"]), entry["values"]) for entry in kept
    )
    return [trial for trial in found if trial is not None]


def _fitting(study: Study, data_key: str) -> list[dict[str, Any]]:
    kept = []
    same = {
        "data": data_key,
        "tasks_tried": len(study.task_sources),
        "target_loss": study.target_loss,
        "schema_version": SCHEMA_VERSION,
        "search_version": SEARCH_VERSION,
    }
    for uri in study.search.warm_start:
        for row in Frontier(uri).trials().to_pylist():
            if row["status"] != "ok" or any(row[name] != value for name, value in same.items()):
                continue
            config = TrialConfig.model_validate_json(row["config"])
            if study.space.params_of(config) is not None:
                source = {"from": storage.join(uri, "frontier"), "trial": row["trial"]}
                kept.append(
                    source
                    | {"values": list(objectives(row, study.unsolved_edges)), "config": config.model_dump(mode="json")}
                )
    return kept
