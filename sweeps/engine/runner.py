"""How a study is run: check, prepare the data, replay what is stored, run the rest on Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune

from circuit.search.config import SEARCH_VERSION
from circuit.tasks import task_data
from sparse_model import storage
from sparse_model.data.loader import TokenDataset
from sparse_model.data.shards import prepare
from sparse_model.errors import InputError
from sparse_model.storage.store_errors import begun
from sweeps.engine.crashes import one_line
from sweeps.engine.interrupts import Interrupts, remembered_interrupts
from sweeps.engine.lease import Lease, holding_lease
from sweeps.engine.orphans import Orphans
from sweeps.engine.session import Capacity, ray_session
from sweeps.engine.tokens import on_ray
from sweeps.engine.trackers import LogFiles, check_trackers
from sweeps.engine.trial import run_trial
from sweeps.engine.tune_search import TuneSearch
from sweeps.frontier.compaction import compact_rows
from sweeps.frontier.parquet import read_table
from sweeps.frontier.queries import Frontier
from sweeps.frontier.rows import SCHEMA_VERSION, table_uri, write_circuit_rows, write_trial_row
from sweeps.search.draws import Objectives, StudySearch
from sweeps.search.objectives import FINAL, TOLD, objectives
from sweeps.search.suggestions import Suggestions
from sweeps.search.warmstart import warm_trials
from sweeps.show.progress import StudyProgress
from sweeps.study.folder import check_storage, earlier_study, keep_study
from sweeps.study.study import Study
from sweeps.trial.failures import Failures
from sweeps.trial.outcome import failed_row, written_row
from sweeps.trial.places import StudyRun, Trial

TRIAL_RETRIES = 3
"""Times a trial is run again after its own process died."""


@dataclass(frozen=True)
class Again:
    """Which trials that have a row are run again: those that failed; those whose circuits another search found, of
    which nothing is trained again."""

    failed: bool = False
    pruned: bool = False

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Whether the trial of this row is run again."""
        return (self.failed and row["status"] == "failed") or (self.pruned and is_of_another_search(row))


def run_study(study: Study, progress: StudyProgress, *, address: str | None, again: Again) -> Frontier:
    """Run or resume a study to its end; afterwards every one of its trials has a row.

    Raises InputError, before anything is trained, for a study that cannot be run, or that another driver runs.
    """
    check_storage(study)
    check_warm_start(study)
    check_trackers(study)
    with holding_lease(study.root, progress.note) as lease:
        return _run_held(study, progress, lease, address, again)


def _run_held(study: Study, progress: StudyProgress, lease: Lease, address: str | None, again: Again) -> Frontier:
    on_any_machine = on_ray(study.resources, address)
    data = prepare(
        study.corpus, study.tokenizer, study.storage, progress.data, execute=on_any_machine, begun=begun_with(study)
    )
    check_tasks(study, data)
    known, attempts = known_results(study, data.manifest.key, again)
    study = keep_study(study)
    progress.replayed(len(known))
    warm = warm_trials(study, data.manifest.key)
    progress.learnt(len(warm))
    for name in study.models_from:
        if not storage.listdir(storage.join(study.storage, name, "models")):
            progress.note(f"models_from: no models of {name} below {study.storage}: what it would have is trained")
    search = StudySearch(study, known, warm, Suggestions(study))
    if not search.is_finished():
        with ray_session(study.resources, address) as capacity, remembered_interrupts() as interrupts:
            if capacity.lacking:
                progress.note(f"waiting for the cluster to grow: a trial needs {capacity.lacking}")
            run = StudyRun(study, data.uri, attempts)
            with begun():
                run_trials(run, search, TrialEvents(run, progress, interrupts, lease), capacity)
    compact_ended(study, progress)
    return Frontier(study.root)


def compact_ended(study: Study, progress: StudyProgress) -> None:
    """Join the small files of a study's rows. They are complete without it: what goes wrong is only said."""
    try:
        compact_rows(study.root)
    except InputError as error:
        progress.note(f"rows stay in small files ({error}); `sweeps compact {study.root}` tries again")


def check_warm_start(study: Study) -> None:
    """The studies to learn from are there, or were when this one began."""
    for i, uri in enumerate(study.search.warm_start if earlier_study(study) is None else ()):
        try:
            Frontier(uri)
        except InputError as error:
            raise InputError(f"search.warm_start[{i}]: {error}") from None


def check_tasks(study: Study, data: TokenDataset) -> None:
    """Every task can be asked in this tokenizer's tokens, and every model of the study can read the prompts."""
    shortest = min(study.space.corner_values("model.context"))
    for source in study.task_sources:
        task = task_data(source, data.tokenizer, pairs=study.pruning.pairs, seed=study.pruning.seed)
        longest = max(task.train.tokens.shape[1], task.heldout.tokens.shape[1])
        if longest > shortest:
            raise InputError(
                f"trial.model.context: {shortest}; prompts of task {task.name} have up to {longest} tokens"
            )


def begun_with(study: Study) -> str | None:
    """Key of the tokens that the study's trials were trained on; None before the first has a row."""
    if not storage.listdir(table_uri(study.root, "trials")):
        return None
    rows = read_table(study.root, "trials", ["data"])
    return next((key for key in rows["data"].to_pylist() if key), None)


def is_of_another_search(row: Mapping[str, Any]) -> bool:
    """Whether the circuits of a trial's row are not of today's search."""
    return bool(row["status"] == "ok" and row["search_version"] != SEARCH_VERSION)


def known_results(study: Study, data_key: str, again: Again) -> tuple[dict[str, Objectives], dict[str, int]]:
    """Objectives of trials that have ended, and those that are to be run again, with their next attempt.

    Raises InputError where they were trained on other text than there is now (of another Python's library, say, or cut
    in another way by an earlier version), or have rows of an earlier schema or circuits of another search.
    """
    if not storage.listdir(table_uri(study.root, "trials")):
        return {}, {}
    rows = [row for row in Frontier(study.root).trials().to_pylist() if row["status"] in FINAL]
    for row in rows:
        if row["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{study.root}: {row['trial']} has a row of schema {row['schema_version']}, which counts circuits "
                f"otherwise than {SCHEMA_VERSION} does; give the study another name"
            )
        if row["data"] != data_key:
            raise InputError(
                f"corpus: its text has changed since {row['trial']} was trained, or this version cuts it otherwise "
                f"(dataset {row['data']}, now {data_key}); give the study another name"
            )
        if is_of_another_search(row) and not again.pruned:
            raise InputError(
                f"{study.root}: circuits of {row['trial']} are of search {row['search_version'] or 'unknown'}, this "
                f"version's is {SEARCH_VERSION}: their sizes do not mix; --prune-again searches again in the models "
                "that are trained, or give the study another name"
            )
    attempts = {row["trial"]: row["attempt"] + 1 for row in rows if again.takes(row)}
    ended = [row for row in rows if row["trial"] not in attempts]
    return {row["trial"]: objectives(row, study.unsolved_edges) for row in ended}, attempts


def run_trials(run: StudyRun, search: StudySearch, events: TrialEvents, capacity: Capacity) -> None:
    """Run every trial that the search hands out.

    Tune's own state goes to a folder that is thrown away: we never restore from it (the rows are the state), it costs
    ten requests per trial on an object store, and an outage of the store would end the study.
    """
    logs = LogFiles(run.study, events.progress.note)
    with tempfile.TemporaryDirectory(prefix="circuit-sweeps-") as scratch, logs:
        callbacks: list[Any] = [events]
        if run.study.callbacks:
            from sweeps.engine.trackers import trackers_of  # which imports all of them that are installed

            callbacks += [*trackers_of(run.study, logs.folder), logs]
        _tuner(run, search, callbacks, capacity, scratch).fit()


def _tuner(run: StudyRun, search: StudySearch, callbacks: list[Any], capacity: Capacity, scratch: str) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, run=run), capacity.holder),
        tune_config=tune.TuneConfig(
            search_alg=TuneSearch(search),
            num_samples=-1,  # until the search says that it has finished
            max_concurrent_trials=capacity.concurrency,
            reuse_actors=True,  # saves a process start, with all its imports, per trial
            trial_name_creator=_trial_key,
            trial_dirname_creator=_trial_key,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=scratch,
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=TRIAL_RETRIES),
            verbose=0,
        ),
    )


def _trial_key(trial: Any) -> str:
    return str(trial.config["key"])


class TrialEvents(tune.Callback):  # type: ignore[misc]
    """What the driver does when something happens to a trial: show it, and see to the rows of one that crashed."""

    def __init__(self, run: StudyRun, progress: StudyProgress, interrupts: Interrupts, lease: Lease) -> None:
        self.run, self.progress, self.interrupts, self.lease = run, progress, interrupts, lease
        self.orphans, self.failures = Orphans(), Failures(run.study.pause_after)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune stores its callbacks beside its state, from which we never restore."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.interrupts.check()
        self.lease.check()
        self.failures.check()
        self.orphans.remove()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.started(_trial_key(trial), Trial.of(trial.config, self.run).config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        key, stage = _trial_key(trial), result.get("stage")
        if stage == "training" and "step" in result:
            self.progress.training(key, result)
        elif stage == "taken":
            self.progress.taken(key, result["model"])
        elif stage == "warning":
            self.progress.warned(key, result["warning"])
        elif stage == "pruning":
            self.progress.pruning(key, result["tasks_done"], result["tasks"])
        elif stage == "done":
            self.failures.take(result["row"])
            self.progress.finished(key, result["row"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        forget(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.orphans.expect()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.orphans.expect()
        crashed = Trial.of(trial.config, self.run)
        error = trial.get_error()
        row = written_row(crashed)
        if row is None:
            self.lease.check()
            row = failed_row(crashed, one_line(error) if error is not None else "its process died")
            write_circuit_rows(self.run.study.root, crashed.key, [], crashed.attempt)
            write_trial_row(self.run.study.root, row)
        self.failures.take(row)
        self.progress.finished(crashed.key, row)
        forget(trial)


def forget(trial: Any) -> None:
    """Drop what Tune holds of a trial that has ended, a tenth of a megabyte that nobody asks for.

    That is its last report, of which the objectives stay (Tune prints a line about a trial without any), and the least,
    greatest, last and mean values of every number in any report.
    """
    trial.run_metadata.last_result = {k: v for k, v in trial.last_result.items() if k in TOLD}
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()
