"""Which proofs a circuit passes, in words (METHOD 6, faithfulness). The thresholds are the constants here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from circuit.graph.evidence import Proofs

if TYPE_CHECKING:  # what reads rows needs no models
    from circuit.graph.record import Circuit

HELDOUT_LIMIT = 1.5
"""Times the target loss that a sufficient circuit may have on held-out prompts."""

RUINED = 0.9 * math.log(2)
"""Nats that the model without a necessary circuit has at least: nine tenths of what guessing costs."""

LARGE_SCALE = 10.0
"""What calibration multiplies logits by, beyond which a circuit's summary says so: so little of its margins comes from
the circuit, and so much from the fit."""

SUBSETS = 1.5
"""Times the target loss that a circuit may have in the mean over random subsets of the rest, and"""

WORST_SUBSET = 2.0
"""in the worst of them."""

ADVERSARY = math.log(2)
"""Nats that a circuit may have in the worst subset found, one for all prompts: what guessing costs."""

CONTROL = 2.0
"""Times the circuit's edges that one for nonsense, or one of the model with its weights shuffled, must take, if there
is one at all."""

ALIKE = 0.95
"""Least share of held-out prompts that a circuit decides as the whole model does, and"""

DIVERGENCE = 0.15
"""the mean divergence in nats it may have from it."""

ALIKE_HARDER = 0.9
"""Least such share of prompts of the harder variant, and"""

ALIKE_WRONG = 0.5
"""of those that the model gets wrong, where they are"""

WRONG_PROMPTS = 8
"""or more."""

CORRELATED = 0.7
"""Least mean correlation of kept nodes' values in the circuit and in the whole model, and mean overlap of attention."""

RESAMPLED = 2.0
"""Times the target loss that a circuit may have when all other nodes are fully resampled."""

STABLE = 0.5
"""Least mean overlap of kept nodes between seeds."""


NOT_MEASURED = "not measured; `sweeps circuit prove` makes every proof"


class Verdict(NamedTuple):
    """`passed` is None where the proof was not measured; `words` give the figures and the threshold."""

    proof: str
    passed: bool | None
    words: str


def verdicts(circuit: Circuit) -> list[Verdict]:
    """Every proof of a circuit; none of a task without one."""
    if circuit.status != "ok":
        return []
    return [
        _sufficient(circuit),
        _necessary(circuit.proofs),
        _subsets(circuit),
        _adversary(circuit.proofs),
        _nonsense(circuit),
        _shuffled_weights(circuit),
        _agrees(circuit.proofs),
        _agrees_inside(circuit.proofs),
        _resampled(circuit),
        _stable(circuit.proofs),
    ]


def summary(circuit: Circuit) -> str:
    """One line: which proofs the circuit passes, which it fails, which were not measured, and whether its logits had to
    be multiplied by more than `LARGE_SCALE`."""
    found = verdicts(circuit)
    kinds = {"passes": True, "fails": False, "not measured:": None}
    groups = {said: [v.proof for v in found if v.passed is passed] for said, passed in kinds.items()}
    parts = [f"{said} {', '.join(names)}" for said, names in groups.items() if names]
    if circuit.proofs.backups:
        parts.append(f"{len(circuit.proofs.backups)} more beside it")
    if found and circuit.scale > LARGE_SCALE:
        parts.append(f"logits times {circuit.scale:.3g} (more than {LARGE_SCALE:g})")
    return "; ".join(parts)


def is_sufficient(heldout_loss: float, target_loss: float) -> bool:
    """Whether a circuit of this loss on held-out pairs does the task, for one that was to reach the target."""
    return heldout_loss <= HELDOUT_LIMIT * target_loss


def is_counted(edges: int, heldout_loss: float, target_loss: float) -> bool:
    """Whether a circuit is part of a geometric mean of edges: it is sufficient on held-out pairs and has an edge."""
    return edges > 0 and is_sufficient(heldout_loss, target_loss)


def _sufficient(circuit: Circuit) -> Verdict:
    limit = HELDOUT_LIMIT * circuit.target_loss
    words = (
        f"loss {circuit.heldout_loss:.3f} and {circuit.heldout_accuracy:.1%} right on held-out prompts with all other "
        f"nodes at their means and logits times {circuit.scale:.3g} (at most {limit:.3f})"
    )
    return Verdict("sufficiency", is_sufficient(circuit.heldout_loss, circuit.target_loss), words)


def _necessary(proofs: Proofs) -> Verdict:
    name, left = "necessity", proofs.necessity_calibrated_loss
    if left is None or proofs.necessity_loss is None or proofs.necessity_accuracy is None:
        return Verdict(name, None, NOT_MEASURED)
    words = (
        f"loss {left:.3f} and {proofs.necessity_accuracy:.1%} right of the calibrated model with only the circuit "
        f"ablated (at least {RUINED:.3f}); {proofs.necessity_loss:.3f} of its own logits"
    )
    return Verdict(name, left >= RUINED, words)


def _subsets(circuit: Circuit) -> Verdict:
    mean, worst = circuit.proofs.subset_loss, circuit.proofs.subset_worst_loss
    if mean is None or worst is None:
        return Verdict("subsets", None, NOT_MEASURED)
    limits = SUBSETS * circuit.target_loss, WORST_SUBSET * circuit.target_loss
    words = (
        f"loss {mean:.3f} (at most {limits[0]:.3f}), in the worst {worst:.3f} (at most {limits[1]:.3f}), of "
        f"{circuit.proofs.subset_draws} random subsets of the rest ablated"
    )
    return Verdict("subsets", mean <= limits[0] and worst <= limits[1], words)


def _adversary(proofs: Proofs) -> Verdict:
    if proofs.adversary_loss is None:
        return Verdict("adversary", None, NOT_MEASURED)
    words = (
        f"loss {proofs.adversary_loss:.3f} with the {proofs.adversary_ablated:,} other parts ablated that harm it most "
        f"(at most {ADVERSARY:.3f})"
    )
    return Verdict("adversary", proofs.adversary_loss <= ADVERSARY, words)


def _nonsense(circuit: Circuit) -> Verdict:
    edges = circuit.proofs.nonsense_edges
    if not edges:
        return Verdict("nonsense", None, NOT_MEASURED)
    shown = ", ".join("none" if n is None else f"{n:,}" for n in edges)
    words = (
        f"edges of the same search for {len(edges)} kinds of nonsense: {shown}; against {circuit.n_edges:,} "
        f"(the median none, or at least {CONTROL:g} times as many)"
    )
    return Verdict("nonsense", median(edges) >= CONTROL * max(1, circuit.n_edges), words)


def _shuffled_weights(circuit: Circuit) -> Verdict:
    name, edges = "shuffled weights", circuit.proofs.shuffled_weights_edges
    if not circuit.proofs.shuffled_weights_tried:
        return Verdict(name, None, NOT_MEASURED)
    if edges is None:
        return Verdict(name, True, "the same search finds no circuit in the model with its weights shuffled")
    words = (
        f"a circuit of the model with its weights shuffled takes {edges:,} edges against {circuit.n_edges:,} "
        f"(at least {CONTROL:g} times as many)"
    )
    return Verdict(name, edges >= CONTROL * max(1, circuit.n_edges), words)


def _agrees(proofs: Proofs) -> Verdict:
    alike, divergence = proofs.agreement, proofs.agreement_divergence
    if alike is None or divergence is None:
        return Verdict("agreement", None, NOT_MEASURED)
    passed = alike >= ALIKE and divergence <= DIVERGENCE
    words = (
        f"{alike:.1%} of held-out prompts decided as the whole model decides them (at least {ALIKE:.0%}), divergence "
        f"{divergence:.3f} (at most {DIVERGENCE:.3f})"
    )
    if proofs.agreement_wrong is not None:
        words += f"; {proofs.agreement_wrong:.0%} of the {proofs.wrong_prompts} it gets wrong"
        if proofs.wrong_prompts >= WRONG_PROMPTS:
            passed &= proofs.agreement_wrong >= ALIKE_WRONG
            words += f" (at least {ALIKE_WRONG:.0%})"
    if proofs.agreement_harder is not None:
        passed &= proofs.agreement_harder >= ALIKE_HARDER
        words += f"; {proofs.agreement_harder:.1%} of harder ones (at least {ALIKE_HARDER:.0%})"
    return Verdict("agreement", passed, words)


def _agrees_inside(proofs: Proofs) -> Verdict:
    name, nodes, heads = "agreement inside", proofs.node_correlations, proofs.attention_overlaps
    if not nodes:
        return Verdict(name, None, NOT_MEASURED)
    means = [sum(values.values()) / len(values) for values in (nodes, heads) if values]
    words = (
        f"correlation {means[0]:.2f} of kept nodes with themselves in the whole model, least {min(nodes.values()):.2f}"
    )
    if heads:
        words += f"; attention of kept heads overlaps by {means[1]:.2f}, least {min(heads.values()):.2f}"
    return Verdict(name, min(means) >= CORRELATED, f"{words} (means at least {CORRELATED:g})")


def _resampled(circuit: Circuit) -> Verdict:
    name, limit = "resample ablation", RESAMPLED * circuit.target_loss
    if not circuit.proofs.resample_losses:
        return Verdict(name, None, NOT_MEASURED)
    losses = sorted(circuit.proofs.resample_losses.items())
    shown = ", ".join(f"{loss:.3f} at {strength:.0%}" for strength, loss in losses)
    words = f"loss {shown} of other nodes' values from random text (at most {limit:.3f} at {losses[-1][0]:.0%})"
    return Verdict(name, losses[-1][1] <= limit, words)


def _stable(proofs: Proofs) -> Verdict:
    if proofs.stability is None:
        return Verdict("stability", None, "one search only; others from other seeds were not asked for")
    words = f"{proofs.stability:.0%} of nodes in common between searches from other seeds (at least {STABLE:.0%})"
    return Verdict("stability", proofs.stability >= STABLE, words)


def median(edges: Sequence[int | None]) -> float:
    """Of numbers of edges, no circuit being infinitely many."""
    ordered = sorted(math.inf if n is None else float(n) for n in edges)
    return ordered[len(ordered) // 2]
