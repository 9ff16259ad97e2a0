"""How a study is run: check, prepare the data, replay what is stored, run the rest on Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from ray import tune

from circuit.tasks import task_data
from sparse_model import storage
from sparse_model.data.loader import TokenDataset
from sparse_model.data.shards import prepare
from sparse_model.errors import InputError
from sweeps.cluster import Capacity, ray_session
from sweeps.frontier import Frontier
from sweeps.interrupts import Interrupts, remembered_interrupts
from sweeps.lease import Lease, held
from sweeps.objectives import FINAL, METRICS, objectives
from sweeps.orphans import Orphans
from sweeps.progress import StudyProgress
from sweeps.ray_tokens import on_ray
from sweeps.rows import table_uri, write_circuit_rows, write_trial_row
from sweeps.search import Objectives, StudySearch
from sweeps.study import Study, read_study
from sweeps.trial import Plan, Trial, failed_row, one_line, run_trial, stored_row
from sweeps.warmstart import warm_trials

CRASHES = 3
"""Times a trial is run again after its own process died."""


def run_study(study: Study, progress: StudyProgress, *, address: str | None, retry_failed: bool) -> Frontier:
    """Run or resume a study to its end; afterwards every one of its trials has a row.

    Raises InputError, before anything is trained, for a study that cannot be run, or that another driver runs.
    """
    check_storage(study)
    check_warm_start(study)
    with held(study.root, progress.note) as lease:
        return _run_held(study, progress, lease, address, retry_failed)


def _run_held(study: Study, progress: StudyProgress, lease: Lease, address: str | None, retry_failed: bool) -> Frontier:
    on_any_machine = on_ray(study.resources, address)
    data = prepare(study.corpus, study.tokenizer, study.storage, progress.data, execute=on_any_machine)
    check_tasks(study, data)
    known, attempts = stored_results(study, data.manifest.key, retry_failed)
    store_study(study)
    progress.replayed(len(known))
    warm = warm_trials(study, data.manifest.key)
    progress.learnt(len(warm))
    search = StudySearch(study, known, warm)
    if not search.is_finished():
        with ray_session(study.resources, address) as capacity, remembered_interrupts() as interrupts:
            if capacity.lacking:
                progress.note(f"waiting for the cluster to grow: a trial needs {capacity.lacking}")
            plan = Plan(study, data.uri, attempts)
            run_trials(plan, search, TrialEvents(plan, progress, interrupts, lease), capacity)
    return Frontier(study.root)


def check_storage(study: Study) -> None:
    """The study's folder can be written, and holds this study if it holds one."""
    storage.check_writable(study.storage)
    stored = stored_study(study)
    if stored is None:
        return
    for path, before, now in differences(_identity(stored), _identity(study)):
        raise InputError(f"{path} is {now!r}, but {study_uri(study)} has {before!r}; give a changed study another name")
    if study.search.trials < stored.search.trials:
        raise InputError(
            f"search.trials is {study.search.trials}, but {study_uri(study)} has {stored.search.trials}; "
            "it can be raised, not lowered"
        )


def check_warm_start(study: Study) -> None:
    """The studies to learn from are there, or were when this one began."""
    for i, uri in enumerate(study.search.warm_start if stored_study(study) is None else ()):
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


def study_uri(study: Study) -> str:
    """Where the study file is kept beside its results."""
    return storage.join(study.root, "study.yaml")


def stored_study(study: Study) -> Study | None:
    """The study whose results are in this study's folder, if any."""
    uri = study_uri(study)
    return read_study(storage.read_bytes(uri).decode(), uri) if storage.exists(uri) else None


def store_study(study: Study) -> None:
    """Keep the study beside its results."""
    storage.write_bytes_atomic(study_uri(study), study.to_yaml().encode())


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


def stored_results(study: Study, data_key: str, retry_failed: bool) -> tuple[dict[str, Objectives], dict[str, int]]:
    """Objectives of trials that have ended, and those that failed and are to be run again, with their next attempt.

    Raises InputError where they were trained on other text than there is now (of another Python's library, say).
    """
    if not storage.listdir(table_uri(study.root, "trials")):
        return {}, {}
    rows = [row for row in Frontier(study.root).trials().to_pylist() if row["status"] in FINAL]
    for row in rows:
        if row["data"] != data_key:
            raise InputError(
                f"corpus: its text has changed since {row['trial']} was trained "
                f"(dataset {row['data']}, now {data_key}); give the study another name"
            )
    again = {row["trial"]: row["attempt"] + 1 for row in rows if retry_failed and row["status"] == "failed"}
    return {row["trial"]: objectives(row) for row in rows if row["trial"] not in again}, again


def run_trials(plan: Plan, search: StudySearch, events: TrialEvents, capacity: Capacity) -> None:
    """Run every trial that the search hands out.

    Tune's own state goes to a folder that is thrown away: we never restore from it (the rows are the state), it costs
    ten requests per trial on an object store, and an outage of the store would end the study.
    """
    with tempfile.TemporaryDirectory(prefix="circuit-sweeps-") as scratch:
        _tuner(plan, search, events, capacity, scratch).fit()


def _tuner(plan: Plan, search: StudySearch, events: TrialEvents, capacity: Capacity, scratch: str) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, plan=plan), capacity.holder),
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=-1,  # until the search says that it has finished
            max_concurrent_trials=capacity.concurrency,
            reuse_actors=True,  # saves a process start, with all its imports, per trial
            trial_name_creator=_trial_key,
            trial_dirname_creator=_trial_key,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=scratch,
            callbacks=[events],
            failure_config=tune.FailureConfig(max_failures=CRASHES),
            verbose=0,
        ),
    )


def _trial_key(trial: Any) -> str:
    return str(trial.config["key"])


class TrialEvents(tune.Callback):  # type: ignore[misc]
    """What the driver does when something happens to a trial: show it, and see to the rows of one that crashed."""

    def __init__(self, plan: Plan, progress: StudyProgress, interrupts: Interrupts, lease: Lease) -> None:
        self.plan, self.progress, self.interrupts, self.lease = plan, progress, interrupts, lease
        self.orphans = Orphans()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune stores its callbacks beside its state, from which we never restore."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.interrupts.check()
        self.lease.check()
        self.orphans.remove()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.started(_trial_key(trial), Trial.of(trial.config, self.plan).config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        key, stage = _trial_key(trial), result.get("stage")
        if stage == "training" and "step" in result:
            self.progress.training(key, result)
        elif stage == "warning":
            self.progress.warned(key, result["warning"])
        elif stage == "pruning":
            self.progress.pruning(key, result["tasks_done"], result["tasks"])
        elif stage == "done":
            self.progress.finished(key, result["row"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        forget(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.orphans.expect()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.orphans.expect()
        crashed = Trial.of(trial.config, self.plan)
        error = trial.get_error()
        row = stored_row(crashed)
        if row is None:
            row = failed_row(crashed, one_line(error) if error is not None else "its process died")
            write_circuit_rows(self.plan.study.root, crashed.key, [], crashed.attempt)
            write_trial_row(self.plan.study.root, row)
        self.progress.finished(crashed.key, row)
        forget(trial)


def forget(trial: Any) -> None:
    """Drop what Tune holds of a trial that has ended, a tenth of a megabyte that nobody asks for.

    That is its last report, of which the objectives stay (Tune prints a line about a trial without any), and the least,
    greatest, last and mean values of every number in any report.
    """
    trial.run_metadata.last_result = {k: v for k, v in trial.last_result.items() if k in METRICS}
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()
