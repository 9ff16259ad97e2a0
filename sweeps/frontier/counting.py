"""What is counted of a trial's circuits: the one rule behind every mean, interval, table and picture of edges.

A task is *solved* where the whole model does it on held-out pairs. A solved task's circuit is *counted* where it passes
sufficiency on held-out pairs and has an edge (`circuit.verdicts.is_counted`). Beside the mean over counted circuits
stand two numbers of tasks that it is not about: those that need no edge, which a bigram table or the embeddings do
alone, and those whose circuit fails on held-out pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from circuit.proofs.verdicts import is_counted, is_sufficient

NOT_SOLVED = ("unsolved", "failed")
"""Statuses of circuits of tasks that the whole model does not do, or of which it is not known."""


@dataclass(frozen=True)
class Counts:
    """Of a trial's circuits of one target loss and method: edges of the counted ones, and numbers of tasks."""

    edges: tuple[int, ...]
    solved: int
    without_edges: int
    failing_heldout: int


def counts(rows: Iterable[Mapping[str, Any]], target: float, method: str = "node") -> Counts:
    """The counts of rows of circuits (`sweeps.rows.CIRCUIT_SCHEMA`) of one trial."""
    there = [row for row in rows if (row["target_loss"], row["method"]) == (target, method)]
    found = [row for row in there if row["status"] == "ok"]
    return Counts(
        edges=tuple(row["edges"] for row in found if counted(row)),
        solved=sum(row["status"] not in NOT_SOLVED for row in there),
        without_edges=sum(_sufficient(row) and row["edges"] == 0 for row in found),
        failing_heldout=sum(not _sufficient(row) for row in found),
    )


def counted(row: Mapping[str, Any]) -> bool:
    """Whether a circuit's row is counted. Rows of other programs may not say how it does on held-out pairs: then it
    is taken to be sufficient."""
    if row["status"] != "ok" or row["edges"] is None:
        return False
    loss = row.get("heldout_loss")
    return is_counted(row["edges"], row["target_loss"] if loss is None else loss, row["target_loss"])


def _sufficient(row: Mapping[str, Any]) -> bool:
    loss = row.get("heldout_loss")
    return loss is None or is_sufficient(loss, row["target_loss"])
