"""Which proofs a circuit passes, in words (METHOD 6, faithfulness). The thresholds are the constants here."""

from __future__ import annotations

import math
from typing import NamedTuple

from circuit.graph.record import Circuit

HELDOUT = 1.5
"""Times the target loss that a sufficient circuit may have on held-out prompts."""

RUINED = 0.9 * math.log(2)
"""Nats that the model without a necessary circuit has at least: nine tenths of what guessing costs."""

LARGE_SCALE = 10.0
"""What calibration multiplies logits by, beyond which a circuit's summary says so: so little of its margins comes from
the circuit, and so much from the fit."""

CONTROL = 2.0
"""Times the circuit's edges that one for shuffled answers must take, if there is one at all."""

RESAMPLED = 2.0
"""Times the target loss that a circuit may have when all other nodes are fully resampled."""

STABLE = 0.5
"""Least mean overlap of kept nodes between seeds."""


class Verdict(NamedTuple):
    """`passed` is None where the proof was not measured; `words` give the figures and the threshold."""

    proof: str
    passed: bool | None
    words: str


def verdicts(circuit: Circuit) -> list[Verdict]:
    """Every proof of a circuit; none of a task without one."""
    if circuit.status != "ok":
        return []
    return [_sufficient(circuit), _necessary(circuit), _control(circuit), _resampled(circuit), _stable(circuit)]


def summary(circuit: Circuit) -> str:
    """One line: which proofs the circuit passes, which it fails, which were not measured, and whether its logits had to
    be multiplied by more than `LARGE_SCALE`."""
    found = verdicts(circuit)
    kinds = {"passes": True, "fails": False, "not measured:": None}
    groups = {said: [v.proof for v in found if v.passed is passed] for said, passed in kinds.items()}
    parts = [f"{said} {', '.join(names)}" for said, names in groups.items() if names]
    if found and circuit.scale > LARGE_SCALE:
        parts.append(f"logits times {circuit.scale:.3g} (more than {LARGE_SCALE:g})")
    return "; ".join(parts)


def is_sufficient(heldout_loss: float, target_loss: float) -> bool:
    """Whether a circuit of this loss on held-out pairs does the task, for one that was to reach the target."""
    return heldout_loss <= HELDOUT * target_loss


def is_counted(edges: int, heldout_loss: float, target_loss: float) -> bool:
    """Whether a circuit is part of a geometric mean of edges: it is sufficient on held-out pairs and has an edge."""
    return edges > 0 and is_sufficient(heldout_loss, target_loss)


def _sufficient(circuit: Circuit) -> Verdict:
    limit = HELDOUT * circuit.target_loss
    words = (
        f"loss {circuit.heldout_loss:.3f} and {circuit.heldout_accuracy:.1%} right on held-out prompts with all other "
        f"nodes at their means and logits times {circuit.scale:.3g} (at most {limit:.3f})"
    )
    return Verdict("sufficiency", is_sufficient(circuit.heldout_loss, circuit.target_loss), words)


def _necessary(circuit: Circuit) -> Verdict:
    if circuit.necessity_loss is None:
        return Verdict("necessity", None, "not measured")
    words = f"loss {circuit.necessity_loss:.3f} of the model with only the circuit ablated (at least {RUINED:.3f})"
    return Verdict("necessity", circuit.necessity_loss >= RUINED, words)


def _control(circuit: Circuit) -> Verdict:
    if circuit.control_loss is None:
        return Verdict("control", None, "not measured")
    if circuit.control_edges is None:
        words = f"the same search finds no circuit for shuffled answers (it reaches loss {circuit.control_loss:.3f})"
        return Verdict("control", True, words)
    words = (
        f"a circuit for shuffled answers takes {circuit.control_edges:,} edges against {circuit.n_edges:,} "
        f"(at least {CONTROL:g} times as many)"
    )
    return Verdict("control", circuit.control_edges >= CONTROL * max(1, circuit.n_edges), words)


def _resampled(circuit: Circuit) -> Verdict:
    name, limit = "resample ablation", RESAMPLED * circuit.target_loss
    if not circuit.resample_losses:
        return Verdict(name, None, "no pretraining text was given to the search")
    losses = sorted(circuit.resample_losses.items())
    shown = ", ".join(f"{loss:.3f} at {strength:.0%}" for strength, loss in losses)
    words = f"loss {shown} of other nodes' values from random text (at most {limit:.3f} at {losses[-1][0]:.0%})"
    return Verdict(name, losses[-1][1] <= limit, words)


def _stable(circuit: Circuit) -> Verdict:
    if circuit.stability is None:
        return Verdict("stability", None, "one search only; others from other seeds were not asked for")
    words = f"{circuit.stability:.0%} of nodes in common between searches from other seeds (at least {STABLE:.0%})"
    return Verdict("stability", circuit.stability >= STABLE, words)
