"""What a trial does: train a model, publish it, find a circuit for every task, write rows, report to the search.

`run_trial` is the table of contents. It runs as Tune's trainable and holds almost no resources: training workers and
pruning tasks are placed by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ray import tune

from sweeps.engine import prune, train
from sweeps.engine.crashes import is_crash, one_line
from sweeps.search.objectives import TOLD, objectives
from sweeps.study.study import Study
from sweeps.trial.outcome import TableRow, failed_row, publish, trial_row, written_row
from sweeps.trial.places import StudyRun, Trial
from sweeps.trial.stored import stored_circuits


def run_trial(config: Mapping[str, Any], run: StudyRun) -> None:
    """Everything a trial does; Tune calls it with what the search handed out.

    What our own code raises becomes a row with status failed. A process that dies is Tune's to try again, and if
    that fails too, the driver writes the row.
    """
    trial = Trial.of(config, run)
    if (row := written_row(trial)) is not None:  # an earlier process ended between its row and its report
        return report_end(row, trial.study)
    circuits: list[TableRow] = []
    prune_seconds = 0.0
    try:
        trained = train.train_model(trial)
        if trained.status == "ok":
            started = time.monotonic()
            stored = stored_circuits(trial)
            circuits = prune.prune_model(trial, report_pruning) if stored is None else stored
            prune_seconds = pruning_seconds(time.monotonic() - started, circuits, trial.study)
        row = trial_row(trial, trained, circuits) | {"prune_seconds": prune_seconds}
    except Exception as error:
        if is_crash(error):
            raise
        row = failed_row(trial, one_line(error))
    publish(trial, circuits, row)
    return report_end(row, trial.study)


def pruning_seconds(clock: float, circuits: list[TableRow], study: Study) -> float:
    """Time of pruning on the wall clock: at least what its searches took, some of which an earlier process has made."""
    searched = sum(row.get("seconds") or 0.0 for row in circuits)
    return max(clock, searched / min(study.resources.pruning_parallel, len(study.task_sources)))


def report_end(row: TableRow, study: Study) -> None:
    """The trial's figures for the search, and its row for the driver to show."""
    told = objectives(row, study.unsolved_edges)
    tune.report(dict(zip(TOLD, told, strict=True)) | {"stage": "done", "row": row})


def report_pruning(done: int, total: int) -> None:
    """Progress of pruning, for the driver to show."""
    tune.report({"stage": "pruning", "tasks_done": done, "tasks": total})
