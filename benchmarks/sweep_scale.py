"""What a study costs besides its work: the driver's seconds, memory, files and storage requests per trial.

The true driver, search, rows and Ray Tune, with training and pruning replaced by stand-ins that take no time. Storage
is an S3 server (moto) in a process of its own, which counts requests, or with --local a folder. Every size of study
runs in a process of its own; `replay` is what starting the finished study again costs.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import yaml
from rich.console import Console
from s3_process import S3Process
from timing import processor

from circuit.tasks import TASKS
from sparse_model import storage
from sweeps.engine import runner
from sweeps.engine.interrupts import remembered_interrupts
from sweeps.engine.lease import holding_lease
from sweeps.engine.session import Capacity, prepare_environment, ray_session
from sweeps.engine.trial import run_trial
from sweeps.search.draws import Assignment, StudySearch
from sweeps.search.objectives import TOLD
from sweeps.search.sampling import OptunaSearch
from sweeps.search.suggestions import Suggestions
from sweeps.show.progress import Show, StudyProgress
from sweeps.study.study import Study, read_study
from sweeps.trial.outcome import TableRow, Trained
from sweeps.trial.places import StudyRun, Trial

SIZES = (100, 1000, 10_000)


def main() -> None:
    """Print a table; with --json also write the figures as one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=SIZES)
    parser.add_argument("--sampler", default="tpe", choices=("tpe", "nsga2", "random"))
    parser.add_argument(
        "--local", action="store_true", help="a folder instead of an S3 server; requests are not counted"
    )
    parser.add_argument("--reports", type=int, help="only how many reports of progress a second the driver takes in")
    parser.add_argument("--history", type=int, help="only the seconds of a suggestion after so many results")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        return run_inside(arguments.inside, arguments.trials[0], arguments.sampler)
    if arguments.reports:
        return print_reports(arguments.reports)
    if arguments.history:
        return print_suggestions(arguments.history, arguments.sampler)
    print("trials  driver s/trial  search s/trial  replay s/trial  memory MB  (+kB/trial)  files/trial  requests/trial")
    figures = [measured(n, arguments.sampler, arguments.local) for n in arguments.trials]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"sampler": arguments.sampler, "sizes": figures}, indent=1))
    return None


def measured(trials: int, sampler: str, local: bool) -> dict[str, Any]:
    """The figures of a study of so many trials, also printed as a line."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = None if local else stack.enter_context(S3Process())
        root = folder if server is None else server.uri
        command = [sys.executable, __file__, "--inside", root, "--trials", str(trials), "--sampler", sampler]
        found: dict[str, Any] = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        )
        fs, path = storage.filesystem(root)
        requests = None if server is None else server.requests()
        found |= {"trials": trials, "files": len(fs.find(path)) / trials, "requests": requests and requests / trials}
    asked = "-" if requests is None else f"{found['requests']:.1f}"
    print(
        f"{trials:>6}  {found['driver_s']:>14.4f}  {found['search_s']:>14.4f}  {found['replay_s']:>14.4f}  "
        f"{found['memory_mb']:>9.0f}  {found['memory_kb_per_trial']:>11.1f}  {found['files']:>11.1f}  {asked:>14}",
        flush=True,
    )
    return found


def run_inside(root: str, trials: int, sampler: str) -> None:
    """Run the study in this process and print the figures as JSON."""
    prepare_environment()
    study = planted_study(root, trials, sampler)
    runner.run_trial = instant_trial
    search = TimedSearch(study, {}, (), Suggestions(study))
    with ExitStack() as stack:
        show = stack.enter_context(Show(Console(file=io.StringIO())))
        capacity = stack.enter_context(ray_session(study.resources, None))
        interrupts = stack.enter_context(remembered_interrupts())
        run, lease = StudyRun(study, "data"), stack.enter_context(holding_lease(study.root, show.line))
        before, start = memory_mb(), time.perf_counter()
        events = runner.TrialEvents(run, StudyProgress(show, study), interrupts, lease)
        runner.run_trials(run, search, events, capacity)
        seconds, after = time.perf_counter() - start, memory_mb()
    start = time.perf_counter()
    known, _ = runner.known_results(study, "data", runner.Again())
    assert len(known) == trials, f"{len(known)} of {trials} trials have rows"
    assert StudySearch(study, known, (), Suggestions(study)).is_finished()
    replay = time.perf_counter() - start
    figures = {
        "driver_s": seconds / trials,
        "search_s": search.seconds / trials,
        "replay_s": replay / trials,
        "memory_mb": after,
        "memory_kb_per_trial": 1e3 * (after - before) / trials,
    }
    print(json.dumps(figures))


def print_suggestions(history: int, sampler: str) -> None:
    """Processor seconds of single suggestions of a search that knows so many results."""
    study = planted_study("unused", 2 * history, sampler)
    drawn = OptunaSearch(study.name, study.space, study.search)
    at_random = study.search.model_copy(update={"sampler": "random"})
    blind = OptunaSearch(study.name, study.space, at_random)
    for number in range(history):
        params, notes = blind.draw(number)
        config = study.space.config(params, 0)
        drawn.add(number, params, notes)
        drawn.tell(number, (2 + abs(math.log(config.training.lr / 0.05)), 1e4 * config.training.fraction))
    seconds = []
    for attempt in range(20):
        start = time.process_time()
        drawn.draw(history, attempt)
        seconds.append(time.process_time() - start)
    figures = f"{median(seconds):.3f} s of processor time a suggestion, at most {max(seconds):.3f}"
    print(f"{history} results: {figures} ({processor()})")


def print_reports(count: int) -> None:
    """Reports a second of four trials at a time that do nothing else; each waits for the one before it to be taken."""
    prepare_environment()
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:
        study = planted_study(root, 4, "random")
        study = study.model_copy(update={"resources": study.resources.model_copy(update={"concurrency": 4})})
        runner.run_trial = partial(reporting_trial, count=count)
        show = stack.enter_context(Show(Console(file=io.StringIO())))
        stack.enter_context(ray_session(study.resources, None))
        capacity = Capacity(4, 0, "", {"CPU": 0.01}, 4)
        interrupts = stack.enter_context(remembered_interrupts())
        run, lease = StudyRun(study, "data"), stack.enter_context(holding_lease(study.root, show.line))
        events = Counted(run, StudyProgress(show, study), interrupts, lease)
        runner.run_trials(run, StudySearch(study, {}), events, capacity)
        seconds = events.times[-1] - events.times[len(events.times) // 4]
        rate = len(events.times) * 3 / 4 / seconds
        print(f"{len(events.times)} reports: {rate:.0f} a second ({processor()})")


class Counted(runner.TrialEvents):
    """Remembers when reports came."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.times: list[float] = []

    def on_trial_result(self, *arguments: Any, **info: Any) -> None:
        self.times.append(time.perf_counter())
        super().on_trial_result(*arguments, **info)


def reporting_trial(config: dict[str, Any], run: StudyRun, count: int) -> None:
    """A trial that only reports."""
    from ray import tune

    figures = {"train_loss": 2.0, "l0": 1000.0, "steps": count, "tokens": 1.0, "lr": 0.1, "train_seconds": 1.0}
    for step in range(count):
        tune.report({"stage": "training", "step": step, **figures})
    tune.report({"stage": "ended", **dict.fromkeys(TOLD, 1.0)})


def planted_study(root: str, trials: int, sampler: str) -> Study:
    """A study with a conditional space of six parameters."""
    content = {
        "name": "scale",
        "storage": root,
        "corpus": {"sources": [{"source": "idioms", "megabytes": 1}]},
        "trial": {
            "kind": {"choice": ["sparse", "dense"]},
            "model": {"d_model": {"choice": [64, 96, 128]}},
            "training": {"lr": {"loguniform": [0.001, 0.3]}, "warmup": {"uniform": [0.0, 0.1]}, "min_alive": 1},
            "sparse": {
                "training": {"fraction": {"loguniform": [0.03, 0.5]}, "anneal": {"uniform": [0.2, 0.8]}},
            },
        },
        "search": {"trials": trials, "sampler": sampler, "in_flight": 8},
        # One at a time: Tune starts a process for a second trial, which takes seconds, and where trials take none it is
        # replaced by the idle one of the first and killed before it is up, over and over.
        "resources": {"concurrency": 1},
    }
    return read_study(yaml.safe_dump(content), "scale")


class TimedSearch(StudySearch):
    """The search, its seconds added up."""

    seconds = 0.0

    def next_assignment(self) -> Assignment | Literal["wait", "finished"]:
        start = time.perf_counter()
        try:
            return super().next_assignment()
        finally:
            self.seconds += time.perf_counter() - start


def instant_trial(config: dict[str, Any], run: StudyRun) -> None:
    """A trial whose training and pruning take no time; all else is as it is."""
    from sweeps.engine import prune, train

    train.train_model = instant_model
    prune.prune_model = instant_circuits
    run_trial(config, run)


def instant_model(trial: Trial) -> Trained:
    recipe, width = trial.config.training, trial.config.model.d_model
    loss = 2 + abs(math.log(recipe.lr / 0.05)) + 20 / width + 0.02 / recipe.fraction
    return Trained("ok", "", {"val_loss": loss, "train_loss": loss, "l0": 1000, "tokens": recipe.tokens, "flops": 1e12})


def instant_circuits(trial: Trial, report: Any) -> list[TableRow]:
    edges = round(1e4 * trial.config.training.fraction) + trial.config.model.d_model
    row = {"study": trial.study.name, "trial": trial.key, "status": "ok", "method": "node", "target_loss": 0.15}
    return [row | {"task": task, "edges": edges + i} for i, task in enumerate(TASKS)]


def memory_mb() -> float:
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
