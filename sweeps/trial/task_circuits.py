"""Circuits of a published model, task by task, as files and rows: the work of a pruning task, nothing of Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from circuit.ablated.ablation import Pretraining, mean_activations
from circuit.graph.evidence import Level, Proofs
from circuit.graph.record import Circuit
from circuit.proofs.resample import STRENGTHS
from circuit.proofs.verdicts import median
from circuit.pruning import find_circuits
from circuit.search.config import PruneConfig
from circuit.search.evaluation import model_score
from circuit.tasks import PairBatch, harder_pairs, task_data
from sparse_model import storage
from sparse_model.data.config import CorpusConfig
from sparse_model.data.corpora import mixture, split_of
from sparse_model.data.loader import TokenDataset
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import from_pretrained
from sweeps.frontier.counting import counted
from sweeps.trial.settings import settings as settings
from sweeps.trial.stored import keep_task, search_mark, stored_task

MEAN_TOKENS = 65_536
"""Training tokens that mean activations are taken over."""

RESAMPLED_WINDOWS = 64
"""Windows of training tokens from which nodes outside a circuit take values in resample ablation."""


def summarise_published(
    model_uri: str, data_uri: str, cache_bytes: int, threads: int, device: str = "cpu"
) -> Pretraining:
    """`summarise_training_text` of a published model, computed on a device; in the CPU's memory, to be sent around."""
    torch.set_num_threads(threads)
    model, _ = from_pretrained(model_uri, device)
    means, text = summarise_training_text(model, TokenDataset.open(data_uri, cache_bytes=cache_bytes))
    return Pretraining({site: mean.cpu() for site, mean in means.items()}, text)


def summarise_training_text(model: SparseTransformer, data: TokenDataset) -> Pretraining:
    """What searches take from training text; the same text for every model of a context."""
    return summarise_text(model, training_windows(model, data))


def training_windows(model: SparseTransformer, data: TokenDataset) -> Tensor:
    """About `MEAN_TOKENS` training tokens as (n, context), drawn from all of the text."""
    rows, context = 32, model.config.context
    steps = max(1, min(MEAN_TOKENS // context, data.n_windows("train", context)) // rows)
    batches = (data.batch("train", step, batch_size=rows, context=context, seed=0) for step in range(steps))
    return torch.cat([torch.from_numpy(batch[:, :-1]) for batch in batches])


def corpus_windows(model: SparseTransformer, tokenizer: Tokenizer, corpus: CorpusConfig) -> Tensor:
    """The first `MEAN_TOKENS` training tokens of a corpus as (n, context), cut by a tokenizer of the model's own.

    InputError for a corpus that is shorter than the model's context.
    """
    context = model.config.context
    tokens: list[int] = []
    for text in mixture(corpus):
        if split_of(text, corpus.heldout_fraction) == "train":
            tokens += [*tokenizer.encode(text), tokenizer.eot]
        if len(tokens) >= MEAN_TOKENS:
            break
    n_windows = min(len(tokens), MEAN_TOKENS) // context
    if not n_windows:
        raise InputError(f"corpus: {len(tokens)} training tokens; the model's context is {context}")
    return torch.tensor(tokens[: n_windows * context]).view(n_windows, context)


def summarise_text(model: SparseTransformer, text: Tensor) -> Pretraining:
    """Mean activations over text (n, context), and some of it."""
    return Pretraining(mean_activations(model, torch.split(text, 32)), text[:RESAMPLED_WINDOWS])


def prune_task(
    model_uri: str,
    task: str,
    config: PruneConfig,
    targets: tuple[float, ...],
    circuits_uri: str,
    threads: int,
    known: Pretraining,
    device: str = "cpu",
    proofs: Level = "basic",
) -> list[dict[str, Any]]:
    """Find, prove, publish and describe one task's circuits, one per target loss and method.

    Those that the same search has published already are described only.
    """
    torch.set_num_threads(threads)
    model, tokenizer = from_pretrained(model_uri, device)
    means = {site: mean.to(device) for site, mean in known.means.items()}
    data = task_data(task, tokenizer, pairs=config.pairs, seed=config.seed)
    mark = search_mark(model, data, config, targets, proofs, known.text)
    if (rows := stored_task(circuits_uri, data.name, mark)) is not None:
        return rows
    harder = harder_prompts(model, tokenizer, task, config)
    circuits = find_circuits(model, data, means, config, targets, text=known.text, harder=harder, proofs=proofs)
    names = [f"{circuit_name(circuit, config.target_loss)}.json" for circuit in circuits]
    for name, circuit in zip(names, circuits, strict=True):
        circuit.save(storage.join(circuits_uri, name))
    accuracy = None if harder is None else model_score(model, harder).accuracy
    rows = [circuit_row(circuit) | {"harder_accuracy": accuracy} for circuit in circuits]
    keep_task(circuits_uri, data.name, mark, names, rows)
    return rows


def harder_prompts(model: SparseTransformer, tokenizer: Tokenizer, task: str, config: PruneConfig) -> PairBatch | None:
    """Prompts of a task's harder variant that fit the model's context; None where there are none."""
    pairs = harder_pairs(task, tokenizer, pairs=config.pairs, seed=config.seed)
    if pairs is None:
        return None
    fits = (pairs.length.view(-1, 2).amax(1) <= model.config.context).nonzero().squeeze(1)
    return pairs.some(fits) if len(fits) else None


def circuit_name(circuit: Circuit, target: float) -> str:
    """A circuit's file, less .json: the task, with the target loss unless it is the study's, and the method unless it
    is node."""
    other = "" if circuit.target_loss == target else f"-{circuit.target_loss:g}"
    return f"{circuit.task}{other}{'' if circuit.method == 'node' else f'-{circuit.method}'}"


def circuit_row(circuit: Circuit) -> dict[str, Any]:
    """The columns of a circuit's row that the circuit knows itself; sizes are null where there is none."""
    same = ("task", "target_loss", "method", "status", "loss", "heldout_loss", "heldout_accuracy", "scale", "shift")
    more = ("uncalibrated_loss", "unpruned_loss", "summary", "seconds")
    sizes = {
        "nodes": circuit.n_nodes,
        "edges": circuit.n_edges,
        "embedding_edges": circuit.n_embedding_edges,
        "unembedding_edges": circuit.n_unembedding_edges,
    }
    row = {name: getattr(circuit, name) for name in (*same, *more)} | {"reason": ""}
    row |= proof_columns(circuit.proofs)
    row |= sizes if circuit.status == "ok" else dict.fromkeys(sizes)
    return row | {"counted": counted(row)}


SAME_NAMES = (
    "necessity_loss",
    "necessity_calibrated_loss",
    "necessity_accuracy",
    "subset_loss",
    "subset_worst_loss",
    "adversary_loss",
    "shuffled_weights_edges",
    "agreement",
    "agreement_divergence",
    "agreement_wrong",
    "agreement_harder",
    "divergence_harder",
    "stability",
)
"""Columns that are a field of `Proofs` as it is."""


def proof_columns(proofs: Proofs) -> dict[str, Any]:
    """The columns of a circuit's row that tell of its proofs; null where not measured."""
    row = {name: getattr(proofs, name) for name in SAME_NAMES} | {"proofs": proofs.level}
    row |= {f"resample_loss_{s:.0%}".rstrip("%"): proofs.resample_losses.get(s) for s in STRENGTHS}
    nonsense = proofs.nonsense_edges
    middle = median(nonsense) if nonsense else math.inf
    return row | {
        "nonsense_found": sum(n is not None for n in nonsense) if nonsense else None,
        "nonsense_edges": middle if math.isfinite(middle) else None,
        "node_correlation": _mean(proofs.node_correlations),
        "attention_overlap": _mean(proofs.attention_overlaps),
        "backups": None if proofs.backups is None else len(proofs.backups),
    }


def _mean(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None
