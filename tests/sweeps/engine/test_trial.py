"""What becomes of a trial, however it ends: its stages are replaced here, Ray's part is tested in tests/cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import ray
from ray import tune
from ray.train import TrainingFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from circuit.search.config import SEARCH_VERSION
from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.storage.store_errors import StorageUnavailable
from sweeps.engine import prune, train
from sweeps.engine.interrupts import Interrupts
from sweeps.engine.lease import Lease, StudyTaken
from sweeps.engine.runner import Again, TrialEvents, known_results
from sweeps.engine.trial import run_trial
from sweeps.frontier.parquet import read_table
from sweeps.frontier.queries import Frontier
from sweeps.frontier.rows import write_circuit_rows, write_curve
from sweeps.search.draws import Assignment, StudySearch
from sweeps.search.objectives import PENALTIES, TOLD, charged_edges, objectives
from sweeps.show.progress import StudyProgress
from sweeps.study.study import Study, read_study
from sweeps.trial.failures import StudyPaused
from sweeps.trial.outcome import Trained, trial_row
from sweeps.trial.places import StudyRun, Trial
from sweeps.trial.stored import keep_training
from sweeps.trial.task_circuits import prune_task

Text = Callable[..., str]
FIGURES = {"val_loss": 2.0, "train_loss": 2.1, "l0": 100, "total_params": 200, "tokens": 1000, "flops": 1e9}
FIGURES |= {"active": 0.2, "active.mlp.act": 0.1}


@pytest.fixture
def study(study_text: Text) -> Study:
    return read_study(study_text({"min_tasks_solved": 2}), "s")


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", reports.append)
    return reports


def suggestion(study: Study) -> dict[str, Any]:
    assignment = StudySearch(study, {}).next_assignment()
    assert isinstance(assignment, Assignment)
    return assignment.as_config()


def circuit(task: str, status: str, edges: int | None, target: float = 0.15) -> dict[str, Any]:
    return {"task": task, "status": status, "edges": edges, "target_loss": target, "method": "node"}


def play(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    trained: Trained | Exception,
    circuits: list[dict[str, Any]] | Exception,
    attempts: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Run a trial whose training and pruning end as given; its row."""

    def ending(outcome: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(train, "train_model", lambda trial: ending(trained))
    monkeypatch.setattr(
        prune, "prune_model", lambda trial, report: [row | {"trial": trial.key} for row in ending(circuits)]
    )
    run_trial(suggestion(study), StudyRun(study, "data", attempts or {}))
    (row,) = Frontier(study.root).trials().to_pylist()
    return dict(row)


def crashed_trial(study: Any, get_error: Any) -> SimpleNamespace:
    """What the driver sees of a trial of Tune's."""
    kept = SimpleNamespace(last_result={}, metric_analysis={}, metric_n_steps={})
    return SimpleNamespace(config=suggestion(study), get_error=get_error, last_result={}, run_metadata=kept)


def test_a_trial_that_ends_well(study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]) -> None:
    found = [circuit("a", "ok", 4), circuit("b", "ok", 9), circuit("c", "unsolved", None), circuit("a", "ok", 99, 0.5)]
    found.append(circuit("a", "ok", 1) | {"method": "edge"})  # never mixed with the others
    row = play(study, monkeypatch, Trained("ok", "", FIGURES), found)
    assert (row["status"], row["eligible"], row["tasks_solved"], row["l0"]) == ("ok", True, 2, 100)
    assert (row["active"], row["active_neurons"]) == (0.2, 0.1)
    assert row["circuit_edges"] == pytest.approx(6)
    assert [reported[-1][metric] for metric in TOLD] == [2.0, charged_edges(row, study.unsolved_edges)]
    assert Frontier(study.root).circuits().num_rows == 5


def test_only_circuits_that_hold_and_have_an_edge_are_counted(
    study_text: Text, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
) -> None:
    """At a target of 0.15 a circuit holds on held-out pairs up to 0.225 nats."""
    study = read_study(study_text({"tasks": "all", "min_tasks_solved": 2}), "s")
    found = [
        circuit("a", "ok", 4) | {"heldout_loss": 0.2249},
        circuit("b", "ok", 9) | {"heldout_loss": 0.1},
        circuit("fails", "ok", 1) | {"heldout_loss": 0.226},
        circuit("fails_and_empty", "ok", 0) | {"heldout_loss": 0.7},
        circuit("empty", "ok", 0) | {"heldout_loss": 0.01},
        circuit("unreached", "unreached", None),
        circuit("unsolved", "unsolved", None),
        circuit("failed", "failed", None),
    ]
    row = play(study, monkeypatch, Trained("ok", "", FIGURES), found)
    names = ("tasks_solved", "tasks_counted", "tasks_without_edges", "tasks_failing_heldout", "tasks_tried")
    assert [row[name] for name in names] == [6, 2, 1, 2, 20]
    assert row["circuit_edges"] == pytest.approx(6)
    assert (row["circuit_edges_low"], row["circuit_edges_high"]) == pytest.approx((4, 9))
    assert reported[-1]["charged_edges"] == pytest.approx((36 * study.unsolved_edges**17.0) ** (1 / 19))
    rows = {row["task"]: row["counted"] for row in Frontier(study.root).circuits().to_pylist()}
    assert [task for task, counts in rows.items() if counts] == ["a", "b"]


def test_too_few_tasks_keep_a_trial_off_the_frontier(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
) -> None:
    row = play(study, monkeypatch, Trained("ok", "", FIGURES), [circuit("a", "ok", 1)])
    assert (row["status"], row["eligible"], row["circuit_edges"]) == ("ok", False, 1)
    told = dict(reported[-1])
    assert told["charged_edges"] == pytest.approx(study.unsolved_edges**0.5), "the other of two tasks is charged"
    assert Frontier(study.root).pareto().num_rows == 0


@pytest.mark.parametrize(
    ("trained", "circuits", "status", "reason"),
    [
        (Trained("diverged", "training loss is nan at step 3", {"train_loss": 9.0}), [], "diverged", "nan at step 3"),
        (InputError("no such thing"), [], "failed", "InputError: no such thing"),
        (Trained("ok", "", FIGURES), RuntimeError("two\nlines"), "failed", "RuntimeError: two lines"),
        (WorkerGroupError("x", {0: ValueError("odd shape")}), [], "failed", "ValueError: odd shape"),
    ],
)
def test_other_ends_are_rows_with_a_reason(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    reported: list[dict[str, Any]],
    trained: Any,
    circuits: Any,
    status: str,
    reason: str,
) -> None:
    row = play(study, monkeypatch, trained, circuits)
    assert row["status"] == status
    assert reason in row["reason"]
    assert (row["eligible"], row["kind"] in ("sparse", "dense")) == (False, True)
    assert tuple(reported[-1][metric] for metric in TOLD) == PENALTIES
    assert Frontier(study.root).circuits().num_rows == 0


def test_a_dead_process_is_tried_again_instead(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
) -> None:
    with pytest.raises(TrainingFailedError):
        play(study, monkeypatch, WorkerGroupError("x", {0: ray.exceptions.ActorDiedError()}), [])
    assert not storage.exists(storage.join(study.root, "frontier"))
    assert not reported


def test_the_driver_sees_to_a_trial_that_kept_crashing(study: Study) -> None:
    class Silent:
        def line(self, text: str) -> None: ...
        def end(self, name: str) -> None: ...

    progress = StudyProgress(Silent(), study)  # type: ignore[arg-type]
    events = TrialEvents(StudyRun(study, "data"), progress, Interrupts(), Lease(study.root, 1))
    error = ray.exceptions.WorkerCrashedError()
    events.on_trial_error(1, [], crashed_trial(study, lambda: error))
    (row,) = Frontier(study.root).trials().to_pylist()
    assert (row["status"], row["eligible"]) == ("failed", False)
    assert "WorkerCrashedError" in row["reason"]


def test_a_validation_loss_is_shown_with_the_step_it_is_of(study: Study) -> None:
    class Shown:
        def stage(self, name: str, share: float, note: str) -> None:
            self.note = note

    shown = Shown()
    progress = StudyProgress(shown, study)  # type: ignore[arg-type]
    metrics = {"step": 20, "steps": 100, "train_loss": 3.0, "l0": 5}
    progress.training("t", metrics)
    assert shown.note == "step 20/100 · train 3.000 · L0 5"
    progress.training("t", metrics | {"step": 40, "val_loss": 2.5, "val_step": 30})
    assert shown.note == "step 40/100 · train 3.000, val 2.500 at 30 · L0 5"


def test_retrying_failed_trials(study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]) -> None:
    """A failed trial is run again when asked for, and what it comes to replaces the penalty."""
    key = play(study, monkeypatch, ValueError("once"), [])["trial"]
    assert known_results(study, "data", Again()) == ({key: PENALTIES}, {})
    known, again = known_results(study, "data", Again(failed=True))
    assert (known, again) == ({}, {key: 1})
    row = play(study, monkeypatch, Trained("ok", "", FIGURES), [circuit("a", "ok", 4)] * 2, again)
    assert (row["trial"], row["status"], row["eligible"], row["retried"]) == (key, "ok", True, True)
    assert known_results(study, "data", Again(failed=True)) == ({key: objectives(row, study.unsolved_edges)}, {})
    assert Frontier(study.root).pareto().num_rows == 1


def of_search(version: int, circuits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"search_version": version} for row in circuits]


def test_circuits_of_another_search_are_refused_or_searched_again(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
) -> None:
    trained, older = Trained("ok", "", FIGURES), of_search(SEARCH_VERSION - 1, [circuit("a", "ok", 9)] * 2)
    key = play(study, monkeypatch, trained, older)["trial"]
    said = rf"circuits of {key} are of search {SEARCH_VERSION - 1}, .*'s is {SEARCH_VERSION}: .* --prune-again"
    for again in (Again(), Again(failed=True)):
        with pytest.raises(InputError, match=said):
            known_results(study, "data", again)
    known, attempts = known_results(study, "data", Again(pruned=True))
    assert (known, attempts) == ({}, {key: 1})
    row = play(study, monkeypatch, trained, [circuit("a", "ok", 4)] * 2, attempts)
    assert (row["circuit_edges"], row["search_version"]) == (pytest.approx(4), SEARCH_VERSION)
    assert Frontier(study.root).circuits()["edges"].to_pylist() == [4, 4], "rows of both searches"
    for again in (Again(), Again(pruned=True)):
        assert known_results(study, "data", again) == ({key: objectives(row, study.unsolved_edges)}, {})


@pytest.mark.parametrize("version", [SEARCH_VERSION - 1, None])
def test_rows_of_circuits_that_an_earlier_version_left_make_a_row_of_its_search(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]], version: int | None
) -> None:
    """It was stopped between the rows of circuits and that of the trial."""
    key = suggestion(study)["key"]
    found = [row | {"trial": key, "study": study.name} for row in of_search(0, [circuit("a", "ok", 9)] * 2)]
    write_circuit_rows(study.root, key, [row | {"search_version": version} for row in found])
    row = play(study, monkeypatch, Trained("ok", "", FIGURES), AssertionError("searched again"))
    assert row["search_version"] == (version or 0)


def test_results_on_other_text_are_not_continued(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
) -> None:
    play(study, monkeypatch, Trained("ok", "", FIGURES), [])
    with pytest.raises(InputError, match="dataset data, now other"):
        known_results(study, "other", Again())


def test_a_trial_whose_rows_cannot_be_written_has_not_finished(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
) -> None:
    def down(*_: Any) -> None:
        raise StorageUnavailable("storage: cannot write: down")

    monkeypatch.setattr(storage, "create", down)
    with pytest.raises(StorageUnavailable):
        play(study, monkeypatch, Trained("ok", "", FIGURES), [circuit("a", "ok", 4)])
    assert not any(report.get("stage") == "done" for report in reported)
    assert not storage.exists(storage.join(study.root, "frontier"))


def test_a_trial_that_ended_without_telling_is_told_from_its_row(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
) -> None:
    """A process that dies between its row and its report: the retry neither trains again nor makes it a failure."""
    written = play(study, monkeypatch, Trained("ok", "", FIGURES), [circuit("a", "ok", 4)] * 2)
    told = reported[-1]
    again = play(study, monkeypatch, AssertionError("trained again"), [])
    assert again == written
    assert {metric: reported[-1][metric] for metric in TOLD} == {metric: told[metric] for metric in TOLD}
    crashed = crashed_trial(study, ray.exceptions.WorkerCrashedError)
    shown: list[str] = []
    progress = SimpleNamespace(finished=lambda key, row: shown.append(row["status"]))
    events = TrialEvents(StudyRun(study, "data"), progress, Interrupts(), Lease(study.root, 1))  # type: ignore[arg-type]
    events.on_trial_error(1, [], crashed)
    assert shown == ["ok"]
    assert Frontier(study.root).trials().to_pylist() == [written]


def test_leftovers_that_cannot_be_removed_are_no_failure(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
) -> None:
    def down(*_: Any) -> None:
        raise StorageUnavailable("storage: cannot delete: down")

    monkeypatch.setattr(storage, "remove", down)
    assert play(study, monkeypatch, Trained("ok", "", FIGURES), [])["status"] == "ok"


@pytest.mark.parametrize("progress", ["whole", "partial", "nothing"])
def test_training_goes_on_for_as_long_as_it_gets_to_whole_checkpoints(
    study: Study, monkeypatch: pytest.MonkeyPatch, progress: str
) -> None:
    """Only those with a manifest count, and others are removed."""
    trial, fits = Trial.of(suggestion(study), StudyRun(study, "data")), list[int]()

    def fit(trial: Trial, scratch: str) -> Trained:
        fits.append(len(fits))
        for name in {"whole": ("x", "manifest.json"), "partial": ("x",), "nothing": ()}[progress]:
            folder = storage.join(trial.checkpoints_uri, f"step-{len(fits):08d}-abc")
            storage.write_bytes_atomic(storage.join(folder, name), b"")
        if len(fits) == 20:
            return Trained("ok", "", {})
        raise WorkerGroupError("x", {0: ray.exceptions.ActorDiedError()})

    monkeypatch.setattr(train, "_fit", fit)
    if progress == "whole":
        assert train.train_model(trial).status == "ok"
        return
    with pytest.raises(TrainingFailedError):
        train.train_model(trial)
    assert len(fits) == 2
    assert len(storage.listdir(trial.checkpoints_uri)) == (progress == "partial"), "the last stays for who looks"


def test_a_model_that_is_published_is_not_trained_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial.of(suggestion(study), StudyRun(study, "data/key"))

    def fit(trial: Trial, scratch: str) -> Trained:
        raise AssertionError("trained again")

    monkeypatch.setattr(train, "_fit", fit)
    summary = {"status": "ok", "reason": "", "metrics": {"val_loss": 2.0}, "dtype": "float32"}
    keep_training(trial.trained_uri, trial.trained_from, summary)
    assert train.train_model(trial) == Trained("ok", "", {"val_loss": 2.0}, "float32")
    other_text = Trial.of(suggestion(study), StudyRun(study, "data/other"))
    with pytest.raises(AssertionError, match="trained again"):
        train.train_model(other_text)


@pytest.mark.parametrize("store", ["folder", "s3"])
def test_a_model_of_a_study_of_models_from_is_copied_with_its_curve(
    store: str,
    study_text: Text,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reported: list[dict[str, Any]],
    request: pytest.FixtureRequest,
) -> None:
    """Under whatever number it was drawn there; not one of another text, nor one that is not whole."""
    root = str(tmp_path)
    if store == "s3":
        server = request.getfixturevalue("s3_server")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3", endpoint_url=server).create_bucket(Bucket="models-from")
        root = f"s3://models-from/below?endpoint_override={server}"
    study, other = (read_study(study_text({"name": name, "storage": root}), "s") for name in ("tiny", "other"))
    asked = suggestion(study)
    theirs = Trial.of(asked | {"key": asked["key"].replace("t00000-", "t00007-")}, StudyRun(other, "data/key"))
    assert theirs.key != asked["key"]
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        storage.write_bytes_atomic(storage.join(theirs.model_uri, name), name.encode())
    points = [{"step": 1, "train_loss": 3.0}, {"step": 2, "train_loss": 2.0}]
    write_curve(other.root, other.name, theirs.key, points)
    write_curve(other.root, other.name, "t00008-another", points)

    def fit(trial: Trial, scratch: str) -> Trained:
        raise InterruptedError("trained again")

    monkeypatch.setattr(train, "_fit", fit)
    taking = study.model_copy(update={"models_from": ("missing", "other")})
    trial = Trial.of(asked, StudyRun(taking, "data/key"))
    with pytest.raises(InterruptedError):
        train.train_model(trial)
    summary = {"status": "ok", "reason": "", "metrics": {"val_loss": 2.0}, "dtype": "float32"}
    keep_training(theirs.trained_uri, theirs.trained_from, summary)
    for stranger in (Trial.of(asked, StudyRun(taking, "data/text")), Trial.of(asked, StudyRun(study, "data/key"))):
        with pytest.raises(InterruptedError):
            train.train_model(stranger)

    def copied(source: Path, uri: str) -> None:
        if source.name == "model.safetensors":
            raise KeyboardInterrupt
        storage.write_bytes_atomic(uri, source.read_bytes())

    with monkeypatch.context() as broken:
        broken.setattr(storage, "upload", copied)
        with pytest.raises(KeyboardInterrupt):
            train.train_model(trial)
    assert storage.listdir(trial.model_uri) == ["config.json", "tokenizer.json"], "a folder with weights is whole"
    assert train.train_model(trial) == Trained("ok", "", {"val_loss": 2.0}, "float32")
    assert reported == [{"stage": "taken", "model": theirs.model_uri}]
    assert storage.read_bytes(storage.join(trial.model_uri, "model.safetensors")) == b"model.safetensors"
    curve = read_table(taking.root, "curves").to_pylist()
    assert [(row["study"], row["trial"], row["train_loss"]) for row in curve] == [
        (study.name, trial.key, point["train_loss"]) for point in points
    ]
    elsewhere = Trained("ok", "", FIGURES | {"devices": 3})
    assert trial_row(trial, elsewhere, [])["devices"] == 3, "train_seconds are of the machines that trained it"
    storage.remove(theirs.trained_uri)
    assert train.train_model(trial).status == "ok", "it is this study's own now"


def test_circuits_that_have_rows_are_not_searched_again(
    study: Study, monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, Any]]
) -> None:
    """A process that dies between the rows of circuits and that of the trial; the time they took stays counted."""
    key = suggestion(study)["key"]
    found = [circuit(task, "ok", 4) | {"trial": key, "study": study.name, "seconds": 30.0} for task in ("a", "b")]
    write_circuit_rows(study.root, key, found)
    row = play(study, monkeypatch, Trained("ok", "", FIGURES), AssertionError("searched again"))
    assert (row["status"], row["tasks_solved"]) == ("ok", 2)
    assert row["prune_seconds"] == pytest.approx(60 / study.resources.pruning_parallel)


def events_of(study: Study) -> TrialEvents:
    progress = SimpleNamespace(finished=lambda key, row: None, started=lambda key, config: None)
    return TrialEvents(StudyRun(study, "data"), progress, Interrupts(), Lease(study.root, 1))  # type: ignore[arg-type]


def test_a_study_of_trials_that_fail_alike_pauses(study: Study) -> None:
    events, kept = events_of(study), SimpleNamespace(config=suggestion(study))

    def ends(status: str, reason: str = "") -> None:
        events.on_trial_result(1, [], kept, {"stage": "done", "row": {"status": status, "reason": reason}})

    for i in range(4):
        ends("failed", f"InputError: s3://b/x-{i}: bucket of t0000{i}-1a2b3c4d is gone at 0x7f3{i}")
    ends("ok")
    for i in range(4):
        ends("failed", f"OutOfMemoryError: tried to allocate {i}.5 GiB")
    ends("failed", "ValueError: of another kind")
    for i in range(4):
        ends("failed", f"OutOfMemoryError: tried to allocate {i}.5 GiB")
        events.failures.check()
    ends("failed", "OutOfMemoryError: tried to allocate 88 GiB")
    with pytest.raises(StudyPaused, match=r"5 trials in a row failed for one reason: OutOfMemoryError: .*88 GiB"):
        events.failures.check()
    events.failures.limit = 0
    events.failures.check()


def test_a_driver_that_lost_its_lease_writes_no_failure(study: Study) -> None:
    events = events_of(study)
    events.lease._taken = True
    with pytest.raises(StudyTaken):
        events.on_trial_error(1, [], crashed_trial(study, ray.exceptions.WorkerCrashedError))
    assert not storage.exists(storage.join(study.root, "frontier"))


def test_pruning_holds_what_it_is_given_and_runs_where_it_is_told_to(study: Study) -> None:
    resources = study.resources.model_copy(update={"gpus_per_worker": 1.0, "workers": 8, "cpus_per_pruning_task": 3})
    anywhere = prune.placement(resources)
    assert (anywhere["num_gpus"], anywhere["num_cpus"], anywhere["resources"]) == (0, 3, {})
    elsewhere = prune.placement(resources.model_copy(update={"pruning_resource": "pruner"}))
    assert (elsewhere["num_gpus"], elsewhere["resources"]) == (0, {"pruner": 3})
    sharing = resources.model_copy(update={"gpus_per_pruning_task": 0.25})
    assert prune.placement(sharing)["num_gpus"] == 0.25
    assert prune.remote(prune_task, sharing)._max_calls == 1  # so that no idle process keeps a GPU's memory
    assert prune.remote(prune_task, resources)._max_calls == 0


def test_reports_go_by_time_and_the_last_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred steps a second, each of which waits for the report before it, would not be a hundred."""
    now, sent = [0.0], list[dict[str, Any]]()
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray.train, "report", sent.append)
    report = train.TimedReports()
    train.TimedReports()({"val_loss": 3.0})  # measured before anything was logged
    sent.clear()
    for step in range(1, 1001):
        now[0] += 0.01
        report({"step": step, "steps": 1000})
    steps = [one["step"] for one in sent]
    assert steps[0] == 1
    assert steps[-1] == 1000
    assert 4 <= len(steps) <= 7, "ten seconds"
