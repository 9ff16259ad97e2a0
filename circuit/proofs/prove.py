"""All proofs of one circuit. `prove` is the table of contents; docs/circuits.md says what each of them means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from circuit.ablated.ablation import Means, Pretraining
from circuit.ablated.batches import AnswerBatch, all_batches
from circuit.graph.evidence import Level, Proofs
from circuit.graph.record import Circuit
from circuit.proofs.adversary import attack
from circuit.proofs.agreement import agreement, inside
from circuit.proofs.backups import backups
from circuit.proofs.kept import CircuitParts
from circuit.proofs.necessity import necessity
from circuit.proofs.nonsense import nonsense_edges, shuffled_edges
from circuit.proofs.resample import resampled_losses
from circuit.proofs.stability import overlap
from circuit.proofs.subsets import in_subsets
from circuit.proofs.verdicts import summary
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.watch import SILENT, Watch
from circuit.tasks import PairBatch, TaskData
from sparse_model.model.transformer import SparseTransformer

SUBSET_DRAWS = {"basic": 20, "full": 200}
"""Random subsets of the rest that are ablated."""

SUBSET_PAIRS = {"basic": 8, "full": 64}
"""Pairs on which they are: most of the model is run on each."""

NECESSITY_PAIRS = 32
"""Pairs, of either half, on which a model without the circuit is calibrated and judged."""


@dataclass(frozen=True)
class Ground:
    """What proofs are made on: the model and the prompts of a task, `harder` ones where the task has such a variant,
    and windows of pretraining `text` (n, T), without which nothing is resampled and no nonsense made."""

    model: SparseTransformer
    task: TaskData
    means: Means
    config: PruneConfig
    text: Tensor | None = None
    harder: PairBatch | None = None
    watch: Watch = SILENT

    @cached_property
    def judge(self) -> Judge:
        """By the pairs that circuits are searched on."""
        return Judge(self.model, self.means, self.task.train, self.watch, max_scale=self.config.max_scale)

    def batches(self, data: PairBatch, pairs: int) -> list[AnswerBatch]:
        """The first pairs of some data."""
        return all_batches(data.first(pairs), self.model.embedding.device)


def prove(ground: Ground, circuit: Circuit, level: Level) -> Proofs:
    """Every proof of a level, of what the circuit keeps: its edges too, where it is of method edge."""
    kept = CircuitParts(ground.model, circuit)
    found: dict[str, object] = {"level": level}
    steps: list[Callable[[Ground, CircuitParts, Level], dict[str, object]]] = [_necessity, _subsets, _agreement]
    if level == "full":
        steps += [_inside, _resample, _controls, _backups]
    if ground.config.stability:
        steps.append(_stability)
    for step in steps:
        ground.watch.judged(circuit.n_nodes, circuit.loss)
        found |= step(ground, kept, level)
    return Proofs.model_validate(found)


def with_proofs(circuit: Circuit, proofs: Proofs, seconds: float | None = None) -> Circuit:
    """The same circuit with its proofs, the words for them, and all the time it took, if that is told."""
    bare = circuit.proven(proofs, "", circuit.seconds if seconds is None else seconds)
    return bare.proven(proofs, summary(bare), bare.seconds)


def _necessity(ground: Ground, kept: CircuitParts, level: Level) -> dict[str, object]:
    train, heldout = (ground.batches(data, NECESSITY_PAIRS) for data in (ground.task.train, ground.task.heldout))
    found = necessity(kept, train, heldout)
    return {
        "necessity_loss": found.raw,
        "necessity_calibrated_loss": found.calibrated,
        "necessity_accuracy": found.accuracy,
    }


def _subsets(ground: Ground, kept: CircuitParts, level: Level) -> dict[str, object]:
    heldout = ground.batches(ground.task.heldout, SUBSET_PAIRS[level])
    drawn = in_subsets(kept, heldout, SUBSET_DRAWS[level], ground.config.seed)
    found: dict[str, object] = {
        "subset_draws": len(drawn.losses),
        "subset_loss": drawn.mean,
        "subset_worst_loss": drawn.worst,
    }
    if level == "full":
        ground.watch.stage = "adversary"
        on = ground.batches(ground.task.train, SUBSET_PAIRS[level]), heldout
        worst = attack(kept, ground.task.train, on, drawn, ground.config.seed)
        found |= {"adversary_loss": worst.loss, "adversary_ablated": worst.ablated}
    return found


def _agreement(ground: Ground, kept: CircuitParts, level: Level) -> dict[str, object]:
    pairs = ground.task.heldout.n_pairs if level == "full" else NECESSITY_PAIRS
    found = agreement(kept, ground.batches(ground.task.heldout, pairs))
    proofs: dict[str, object] = {
        "agreement": found.alike,
        "agreement_divergence": found.divergence,
        "wrong_prompts": found.wrong,
        "agreement_wrong": found.alike_wrong,
    }
    if ground.harder is not None:
        harder = agreement(kept, ground.batches(ground.harder, pairs))
        proofs |= {"agreement_harder": harder.alike, "divergence_harder": harder.divergence}
    return proofs


def _inside(ground: Ground, kept: CircuitParts, level: Level) -> dict[str, object]:
    found = inside(kept, ground.batches(ground.task.heldout, SUBSET_PAIRS[level]))
    return {"node_correlations": found.nodes, "attention_overlaps": found.heads}


def _resample(ground: Ground, kept: CircuitParts, level: Level) -> dict[str, object]:
    if ground.text is None:
        return {}
    circuit, pretraining = kept.circuit, Pretraining(ground.means, ground.text)
    channels, edges = kept.index.channels(kept.nodes), circuit.kept_edges(kept.nodes.device)
    heldout, seed = ground.task.heldout, ground.config.seed
    losses = resampled_losses(ground.model, pretraining, channels, edges, heldout, kept.calibration, seed=seed)
    return {"resample_losses": losses}


def _controls(ground: Ground, kept: CircuitParts, level: Level) -> dict[str, object]:
    if ground.text is None:
        return {}
    ground.watch.stage = "nonsense"
    config = _at(ground, kept)
    args = ground.judge, config, kept.circuit.method, ground.text
    return {
        "nonsense_edges": tuple(nonsense_edges(*args)),
        "shuffled_weights_tried": True,
        "shuffled_weights_edges": shuffled_edges(*args),
    }


def _backups(ground: Ground, kept: CircuitParts, level: Level) -> dict[str, object]:
    ground.watch.stage = "backups"
    return {"backups": tuple(backups(ground.judge, kept, _at(ground, kept), kept.circuit.method))}


def _stability(ground: Ground, kept: CircuitParts, level: Level) -> dict[str, object]:
    ground.watch.stage = "stability"
    return {"stability": overlap(ground.judge, _at(ground, kept), kept.circuit.method, kept.nodes)}


def _at(ground: Ground, kept: CircuitParts) -> PruneConfig:
    """The search at the circuit's own target."""
    return ground.config.model_copy(update={"target_loss": kept.circuit.target_loss})
