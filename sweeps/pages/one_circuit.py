"""A circuit's page from what lies in a study's folder: its model, its text, circuits beside it."""

from __future__ import annotations

from circuit.graph.checks import check_model
from circuit.graph.record import Circuit
from circuit.pages import Notes, Page, circuit_page
from circuit.tasks import TASKS, TaskData, task_data
from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import from_pretrained
from sweeps.study.folder import study_at
from sweeps.study.study import Study
from sweeps.trial.task_circuits import settings

CONTEXT_WINDOWS = 256
"""Windows of training text in which contexts are looked for."""


def trial_of(model_uri: str) -> tuple[str, str] | None:
    """(study's folder, trial) of a model at <study>/models/<trial>; None where it is not a trial's."""
    location, _, query = model_uri.partition("?")
    parts = location.rstrip("/").rsplit("/", 2)
    if len(parts) != 3 or parts[1] != "models" or query:
        return None
    return parts[0], parts[2]


def study_of(model_uri: str) -> Study | None:
    """The study that trained a model, if it is kept beside it."""
    trial = trial_of(model_uri)
    if trial is None or not storage.exists(storage.join(trial[0], "study.yaml")):
        return None
    return study_at(trial[0]).model_copy(update={"storage": storage.parent(trial[0])})


def prompts_named(circuit: Circuit, study: Study, tokenizer: object, source: str | None) -> TaskData:
    """The prompts of a circuit, drawn as the study draws them; InputError where its task is not known."""
    named = {name.rsplit("/", 1)[-1].removesuffix(".jsonl"): name for name in study.task_sources}
    source = source or (circuit.task if circuit.task in TASKS else named.get(circuit.task))
    if source is None:
        raise InputError(f"task {circuit.task} is not in the table; name its file with --task")
    config = settings(study)
    prompts = task_data(source, tokenizer, pairs=config.pairs, seed=config.seed)  # type: ignore[arg-type]
    if prompts.name != circuit.task:
        raise InputError(f"--task {source}: task {prompts.name}; the circuit is of {circuit.task}")
    return prompts


def origin_of(circuit: Circuit, model_uri: str, study: Study) -> dict[str, str]:
    """What made a circuit, for the head of its page."""
    trial = trial_of(model_uri)
    corpus = " + ".join(
        f"{source.source} {source.megabytes:g} MB" if source.megabytes else str(source.source)
        for source in study.corpus.sources
    )
    own = (
        {"trial": trial[1], "study": study.name}
        if trial
        else {"model folder": model_uri, "prompts as in study": study.name}
    )
    return own | {"corpus": corpus, "search took": f"{circuit.seconds:.0f} s"}


def relatives_of(circuit: Circuit, uri: str) -> list[Circuit]:
    """Circuits of the same task and model in the same folder."""
    folder, own = storage.parent(uri), uri.split("?")[0].rsplit("/", 1)[-1]
    found = []
    for name in storage.listdir(folder):
        if name != own and name.startswith(circuit.task) and name.endswith(".json"):
            try:
                other = Circuit.load(storage.join(folder, name))
            except InputError:
                continue
            if (other.task, other.model) == (circuit.task, circuit.model):
                found.append(other)
    return found


def page_of(
    uri: str, model_uri: str, study: Study, text: object, *, task: str | None = None, notes: Notes | None = None
) -> Page:
    """The page of the circuit at `uri`; InputError where it is of another model or task."""
    circuit = Circuit.load(uri)
    model, tokenizer = from_pretrained(model_uri)
    return drawn(circuit, uri, model_uri, study, model, tokenizer, text, task=task, notes=notes)


def drawn(
    circuit: Circuit,
    uri: str,
    model_uri: str,
    study: Study,
    model: SparseTransformer,
    tokenizer: object,
    text: object,
    *,
    task: str | None = None,
    notes: Notes | None = None,
    most_pairs: int | None = None,
) -> Page:
    """The same of what is loaded already, its figures of at most so many pairs of prompts."""
    check_model(circuit, model)
    prompts, remarks = prompts_named(circuit, study, tokenizer, task), []
    if most_pairs is not None and prompts.heldout.n_pairs > most_pairs:
        remarks = [
            f"Figures are of {most_pairs} of {prompts.heldout.n_pairs} held-out pairs; `sweeps circuit page` takes all"
        ]
        prompts = TaskData(prompts.name, prompts.train.first(most_pairs), prompts.heldout.first(most_pairs))
    return circuit_page(
        circuit,
        model,
        prompts,
        text,  # type: ignore[arg-type]
        tokenizer=tokenizer,  # type: ignore[arg-type]
        origin=origin_of(circuit, model_uri, study),
        relatives=relatives_of(circuit, uri),
        notes=notes,
        remarks=remarks,
    )
