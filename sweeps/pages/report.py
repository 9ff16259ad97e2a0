"""How a study report is made: `write_report` is the table of contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import pyarrow.compute as pc
from torch import Tensor

from circuit.graph.record import Circuit
from circuit.pages.render import asset, html
from sparse_model import storage
from sparse_model.data.loader import TokenDataset
from sparse_model.errors import InputError
from sparse_model.saved.pretrained import from_pretrained
from sweeps.frontier.queries import Frontier
from sweeps.pages.one_circuit import CONTEXT_WINDOWS, drawn, study_of
from sweeps.pages.report_data import page_name, report_data
from sweeps.trial.task_circuits import circuit_row, training_windows

MOST_PAIRS = 64
"""Pairs of prompts of a page that a report draws: there may be hundreds of pages."""

DrawnPages = Literal["front", "all", "none"]
"""Which circuits get pages: those that count, of trials on the front; all of all trials; none."""


class _Job(NamedTuple):
    """A trial whose circuits are drawn, all or those that count: the study's folder, its key, that of its text."""

    root: str
    study: str
    trial: str
    data: str
    all_circuits: bool


_Draw = Callable[[_Job], list[str]]
Spread = Callable[[_Draw, Sequence[_Job]], Iterator[tuple[_Job, list[str]]]]
"""Carries out a function over jobs, and gives each with its result as they end."""


def _in_turn(work: _Draw, jobs: Sequence[_Job]) -> Iterator[tuple[_Job, list[str]]]:
    """One after the other, in this process."""
    yield from ((job, work(job)) for job in jobs)


class ToldReport(NamedTuple):
    """Where a report is, how many pages of circuits it has, and why others could not be drawn."""

    address: str
    pages: int
    problems: list[str]


def write_report(
    places: Sequence[storage.PathOrURI],
    out: storage.PathOrURI | None = None,
    draw: DrawnPages = "front",
    tell: Callable[[float, str], None] = lambda share, words: None,
    spread: Spread | None = None,
) -> ToldReport:
    """Write `index.html` and pages of circuits below `out`, the only study's folder `report` if left out.

    `spread` carries out a function over jobs, in turn if left out. Pages that are there are kept. What cannot be drawn
    is said in `problems`. InputError where there are no rows, and no study either.
    """
    uris = [storage.as_uri(place) for place in places]
    where = storage.as_uri(out) if out else (storage.join(uris[0], "report") if len(uris) == 1 else "report")
    storage.check_writable(where)
    frontier = Frontier(*uris, may_be_empty=True)
    several, problems = len(uris) > 1, []
    jobs = _jobs(frontier, uris, draw)
    for done, (job, found) in enumerate((spread or _in_turn)(partial(draw_trial, where, several), jobs), start=1):
        problems += [f"{job.trial}: {problem}" for problem in found]
        tell(done / len(jobs), f"{done}/{len(jobs)} trials")
    made = {name: name for name in _there(where, frontier, several)}
    data = report_data(uris, made) | {"out": where}
    index = storage.join(where, "index.html")
    storage.write_bytes_atomic(index, rendered(data).encode())
    return ToldReport(index, len(made), problems)


def rendered(data: dict[str, Any]) -> str:
    """The page of a report's data."""
    return html(
        asset("report.html", "sweeps.pages"),
        data,
        [asset("base.css"), asset("report.css", "sweeps.pages")],
        [asset("base.js"), *(asset(name, "sweeps.pages") for name in ("study.js", "panels.js")), asset("ready.js")],
        names=data["names"],
        uris=data["uris"],
        omitted=data["omitted"],
        made_with=data["made_with"],
        studies=list(zip(data["studies"], data["uris"], strict=True)),
    )


def _jobs(frontier: Frontier, uris: Sequence[str], draw: DrawnPages) -> list[_Job]:
    """The trials whose circuits get pages, those that have models."""
    if draw == "none":
        return []
    trials = frontier.trials()
    chosen = frontier.pareto() if draw == "front" else trials.filter(pc.equal(trials["status"], "ok"))
    with_models = {uri: set(storage.listdir(storage.join(uri, "models"))) for uri in uris}
    return [
        _Job(uri, row["study"] or "", row["trial"], row["data"] or "", draw == "all")
        for row in chosen.to_pylist()
        for uri in uris
        if row["trial"] in with_models[uri] and (len(uris) == 1 or _is_of(uri, row["study"]))
    ]


def _is_of(uri: str, study: str | None) -> bool:
    return uri.split("?")[0].rstrip("/").rsplit("/", 1)[-1] == study


def draw_trial(where: str, several: bool, job: _Job) -> list[str]:
    """Draw the circuits of a trial that have no page yet; what could not be drawn."""
    folder = storage.join(job.root, "circuits", job.trial)
    names = [name.removesuffix(".json") for name in storage.listdir(folder) if name.endswith(".json")]
    missing = [
        n
        for n in names
        if not storage.exists(storage.join(where, *page_name(job.study, job.trial, n, several).split("/")))
    ]
    model_uri = storage.join(job.root, "models", job.trial)
    study = study_of(model_uri)
    if study is None or not missing:
        return [] if study else ["no study.yaml beside it"]
    model, tokenizer = from_pretrained(model_uri)
    text = _text(storage.join(study.storage, "data", job.data) if job.data else "", model)
    problems = []
    for name in missing:
        uri = storage.join(folder, f"{name}.json")
        try:
            circuit = Circuit.load(uri)
            if circuit.status == "ok" and (job.all_circuits or circuit_row(circuit)["counted"]):
                page = drawn(circuit, uri, model_uri, study, model, tokenizer, text, most_pairs=MOST_PAIRS)
                target = storage.join(where, *page_name(job.study, job.trial, name, several).split("/"))
                storage.write_bytes_atomic(target, page.encode())
        except Exception as error:  # one page less, never no report
            problems.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
    return problems


def _text(uri: str, model: Any) -> Tensor | None:
    """Windows of the text a trial was trained on, if it is still there."""
    try:
        return training_windows(model, TokenDataset.open(uri))[:CONTEXT_WINDOWS] if uri else None
    except InputError:
        return None


def _there(where: str, frontier: Frontier, several: bool) -> list[str]:
    """Pages of circuits below a report's folder."""
    found = []
    studies = {row for row in pc.unique(frontier.trials()["study"]).to_pylist() if row} if several else {""}
    for study in studies:
        base = ("circuits", study) if several else ("circuits",)
        for trial in storage.listdir(storage.join(where, *base)):
            pages = storage.listdir(storage.join(where, *base, trial))
            found += ["/".join([*base, trial, page]) for page in pages if page.endswith(".html")]
    return found
