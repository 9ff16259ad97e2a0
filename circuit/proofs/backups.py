"""How many circuits of a task a model holds: those found are excluded, until none is left (METHOD 11)."""

from __future__ import annotations

from circuit.proofs.kept import CircuitParts
from circuit.search.config import Method, PruneConfig
from circuit.search.evaluation import Judge
from circuit.search.targets import find

MOST_BACKUPS = 8
"""Circuits after which no other is looked for."""


def backups(judge: Judge, kept: CircuitParts, config: PruneConfig, method: Method) -> list[int]:
    """Edges of the circuits that are there beside one, each found with all nodes of those before it ablated."""
    target, found = config.target_loss, list[int]()
    among = ~kept.nodes
    while len(found) < MOST_BACKUPS:
        solution = find(judge, config, method, (target,), among).get(target)
        if solution is None or not bool(solution.nodes.any()):
            break
        found.append(solution.size[0])
        among = among & ~solution.nodes
    return found
