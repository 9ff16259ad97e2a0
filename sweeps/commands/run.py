"""`sweeps run`: a whole study."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from sparse_model import storage
from sparse_model.storage.store_errors import begun, redacted
from sweeps.commands.options import PruneAgainOption, RetryOption
from sweeps.commands.pages import say_report
from sweeps.engine.parallel import on_all_cores
from sweeps.engine.session import capacity_at, prepare_environment
from sweeps.frontier.queries import Frontier
from sweeps.pages.report import write_report
from sweeps.show.plot import plot_frontier
from sweeps.show.progress import Show, StudyProgress
from sweeps.show.text import frontier_table, terminal
from sweeps.study.study import Study, load_study, shipped_studies


def run_command(
    study: Annotated[
        str, typer.Argument(help=f"a study file, or the name of a shipped study ({', '.join(shipped_studies())})")
    ],
    storage_uri: Annotated[
        str | None, typer.Option("--storage", help="folder or URI for results, instead of the study's own")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="of a Ray cluster (auto: the one this runs on); none: one is started here")
    ] = None,
    retry_failed: RetryOption = False,
    prune_again: PruneAgainOption = False,
) -> int:
    """Run a study, or resume it: trials that have a row already are not repeated.

    Exits 1 if no trial of the study ended well, 2 on bad input (nothing is run), 130 when interrupted.
    """
    prepare_environment()
    from sweeps.engine.runner import Again, run_study

    asked = load_study(study, storage_uri)
    if address is not None:
        capacity_at(address, asked.resources)  # before the data are prepared
    console = terminal()
    with Show(console) as show:
        show.line(f"study {asked.name}: {asked.search.trials} configurations, results in {asked.root}")
        again = Again(failed=retry_failed, pruned=prune_again)
        done = run_study(asked, StudyProgress(show, asked), address=address, again=again)
    with begun():
        return _summary(asked, done, console)


def _summary(study: Study, done: Frontier, console: Console) -> int:
    """The frontier's table, its picture, and where everything lies."""
    trials = done.trials()
    picture = storage.join(study.root, "frontier.png")
    plot_frontier(done, picture)
    console.print(frontier_table(done.compared(), f"Frontier of {study.name}", console.width))
    for what, where in (
        ("rows", storage.join(study.root, "frontier")),
        ("models", storage.join(study.root, "models")),
        ("circuits", storage.join(study.root, "circuits")),
        ("picture", picture),
    ):
        console.print(f"{what:>9}: {where}", soft_wrap=True, markup=False)
    _report(study, console)
    statuses = trials["status"].to_pylist()
    bad = len(statuses) - statuses.count("ok")
    if bad:
        console.print(f"{bad} of {len(statuses)} trials did not end well; their rows say why")
    return 0 if "ok" in statuses else 1


def _report(study: Study, console: Console) -> None:
    """Write the study's report, if it wants one. Results are complete without it: whatever goes wrong is only said."""
    if study.report == "none":
        return
    try:
        with Show(Console(stderr=True)) as show:
            done = write_report([study.root], None, study.report, partial(show.stage, "report"), on_all_cores)
        say_report(done)
    except Exception as error:
        why = redacted(f"{type(error).__name__}: {' '.join(str(error).split())}")
        console.print(f"no report: {why}; `sweeps report {study.root}` tries again", markup=False, soft_wrap=True)
