"""What a node does on a task's prompts, in figures and in words that follow from them.

Shapes: R rows (even ones are prompts A, odd ones B), T time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from circuit.graph.record import Node
from circuit.pages.shown import cue_marks
from circuit.tasks import PairBatch

STEADY = 0.1
"""Standard deviation over mean below which a value counts as constant, and over another spread as nothing."""
_APART = 2.0
"""Distance of the means on A and B, in pooled standard deviations, from which a node tells A from B."""
_SMALL = 0.25
"""Distance of two means, in standard deviations of all of a node's values, up to which they count as the same."""
_MOST_TOKENS = 3
"""Tokens named as those a node is highest or lowest at."""


class Places(NamedTuple):
    """Boolean (R, T): real positions, those of the cue, and the answer positions."""

    real: Tensor
    cue: Tensor
    answer: Tensor


def places_of(data: PairBatch) -> Places:
    """Where prompts are, where the two of a pair differ, and where they are answered."""
    rows, longest = data.tokens.shape
    position = torch.arange(longest)
    real = position < data.length[:, None]
    cue = torch.zeros(rows, longest, dtype=torch.bool)
    for pair in range(rows // 2):
        a, b = (data.tokens[row, : data.length[row]].tolist() for row in (2 * pair, 2 * pair + 1))
        for row, marks in zip((2 * pair, 2 * pair + 1), cue_marks(a, b), strict=True):
            cue[row, : len(marks)] = torch.tensor(marks, dtype=torch.bool)
    return Places(real, cue, position == data.length[:, None] - 1)


def figures(values: Tensor, places: Places) -> dict[str, Any]:
    """Of a node's values (R, T): their range, the share that is not zero, and means on A and B at cue and answer."""
    seen = values[places.real].double()
    found: dict[str, Any] = {
        "low": float(seen.min()),
        "high": float(seen.max()),
        "mean": float(seen.mean()),
        "deviation": float(seen.std(correction=0)),
        "active": float(seen.ne(0).double().mean()),
    }
    for name, where in (("cue", places.cue), ("answer", places.answer)):
        sides = [values[side::2][where[side::2]].double() for side in (0, 1)]
        found[name] = [float(side.mean()) if len(side) else None for side in sides]
        found[f"{name}_apart"] = _apart(sides[0], sides[1], found["deviation"])
    elsewhere = values[places.real & ~places.cue].double()
    found["elsewhere"] = float(elsewhere.mean()) if len(elsewhere) else None
    found["marks_cue"] = _apart(values[places.cue].double(), elsewhere, found["deviation"])
    return found


def _apart(a: Tensor, b: Tensor, deviation: float) -> float | None:
    """Distance of two means in pooled standard deviations, at most 99; None where either is of nothing, 0 where it is
    small beside how the node varies at all."""
    if not len(a) or not len(b):
        return None
    distance = abs(float(a.mean() - b.mean()))
    if distance <= _SMALL * deviation:
        return 0.0
    pooled = float(((a.var(correction=0) + b.var(correction=0)) / 2).sqrt())
    return min(99.0, distance / pooled) if pooled > 0 else 99.0


def alike(a: Tensor, b: Tensor) -> float | None:
    """Correlation of two runs' values (P,) of a node; None where one does not vary."""
    if float(a.std()) < 1e-9 or float(b.std()) < 1e-9:
        return None
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def tokens_at(values: Tensor, data: PairBatch, places: Places, name: Callable[[int], int]) -> dict[str, Any]:
    """The prompts' tokens at which a node's mean value is highest and lowest, as [token, mean]."""
    seen, tokens = values[places.real].double(), data.tokens[places.real]
    ids, inverse, counts = torch.unique(tokens, return_inverse=True, return_counts=True)
    means = torch.zeros(len(ids), dtype=torch.float64).index_add(0, inverse, seen) / counts
    order = means.argsort(stable=True).tolist()
    chosen = {"highest": order[::-1][:_MOST_TOKENS], "lowest": order[:_MOST_TOKENS]}
    return {end: [[name(int(ids[i])), float(means[i])] for i in places] for end, places in chosen.items()}


def role_words(node: Node, found: dict[str, Any], answer_values: Tensor) -> list[str]:
    """What the figures of a node in the circuit say of it; `answer_values` (R,) are those at the answers."""
    said = []
    kind = node.site.rsplit(".", 1)[-1]
    if found["deviation"] <= 1e-6 * max(1.0, abs(found["mean"])):
        said.append(f"constant: {found['mean']:.3g} at every token of every prompt")
    elif kind == "q" and _steady(answer_values):
        said.append("constant query: the same at the answer of every prompt")
    elif kind == "k" and found["deviation"] <= STEADY * abs(found["mean"]):
        said.append("constant key: nearly the same at every token")
    elif kind != "q" and _steady(answer_values):
        said.append("the same at the answer of every prompt")
    if (found["answer_apart"] or 0) >= _APART:
        said.append(f"tells A from B at the answer: {_sides(found['answer'])}")
    elif (found["cue_apart"] or 0) >= _APART:
        said.append(f"tells A from B at the cue: {_sides(found['cue'])}")
    elif (found["marks_cue"] or 0) >= _APART:
        at = [value for value in found["cue"] if value is not None]
        said.append(f"marks the cue: {sum(at) / len(at):+.2f} there, {found['elsewhere']:+.2f} elsewhere")
    if 0 < found["active"] <= 0.25:
        said.append(f"zero but at {found['active']:.0%} of the tokens")
    return said or ["differs between tokens, not between A and B"]


def _steady(values: Tensor) -> bool:
    deviation, mean = float(values.double().std(correction=0)), float(values.double().mean())
    return deviation <= STEADY * abs(mean)


def _sides(pair: list[float | None]) -> str:
    return " and ".join(f"{value:+.2f} on {side}" for side, value in zip("AB", pair, strict=True) if value is not None)
