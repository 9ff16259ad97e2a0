"""Ablations of the recipe: one change at a time against the study's first configuration, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from sweeps.claims.claim import NO_ROWS, ClaimPart, Rule
from sweeps.claims.intervals import NATS, Measured, over_pairs, over_tasks
from sweeps.claims.landed import Landed, LandedRow
from sweeps.claims.trends import flat_config

WORSE, NO_GAIN = Rule("above", 0), Rule("below", 0.02)
"""A loss that rises; a gain that is less than 0.02 nats, a fifth of what another seed changes."""


@dataclass(frozen=True)
class Contrast:
    """A variant of the base against another one, and the sign that the paper gives: `rule` of the difference.

    `changed` and `against` are the fields in which the two differ from the base, by path.
    """

    name: str
    changed: Mapping[str, Any]
    rule: Rule | None = None
    against: Mapping[str, Any] = field(default_factory=dict)
    column: str = "val_loss"


CLIPPED = {"training.gradient": "clip", "training.lr": 10.0}
UNCLIPPED = {"training.gradient": "none", "training.lr": 10.0}
NO_ANNEAL, NO_SHARKFIN = {"training.anneal": 0.0}, {"training.sharkfin": False}
CONTRASTS = (
    Contrast("gradients as they are, against clipped", UNCLIPPED, WORSE, CLIPPED),
    Contrast("gradients clipped, not divided by their RMS", CLIPPED),
    Contrast("gradients as they are", UNCLIPPED),
    Contrast("no warm-up", {"training.warmup": 0.0}, WORSE),
    Contrast("no anneal", NO_ANNEAL, WORSE),
    Contrast("no anneal, against anneal without sharkfin: the gain", NO_ANNEAL, NO_GAIN, NO_SHARKFIN),
    Contrast("anneal without sharkfin", NO_SHARKFIN, WORSE),
    Contrast("anneal over a fifth", {"training.anneal": 0.2}),
    Contrast("anneal over four fifths", {"training.anneal": 0.8}),
    Contrast("no bigram table", {"model.bigram": False}, WORSE),
    Contrast("an attention sink", {"model.attention_sink": True}),
    Contrast("no positions", {"model.positions": "none"}),
    Contrast("no minimum alive: dead neurons", {"training.min_alive": 0}, Rule("above", 0), column="dead_neurons"),
    Contrast("no minimum alive", {"training.min_alive": 0}),
    Contrast("2 alive", {"training.min_alive": 2}),
    Contrast("4 alive", {"training.min_alive": 4}),
)
"""What the paper reports of its recipe. Where it gives no sign, or one for another size only, there is no rule."""

FRACTION = "model.activation_fraction"
FEWER = ((0.0625, "1/16"), (0.125, "1/8"), (0.5, "1/2"), (1.0, "all"))
"""Shares that AbsTopK may keep, other than the base's quarter."""


class Ablations:
    """The rows of a study of ablations. `variant` is the fields in which a trial differs from the first one."""

    def __init__(self, landed: Landed, studies: Sequence[str]) -> None:
        self.rows = sorted(landed.trials(studies), key=lambda row: (row["suggestion"], row["seed"]))
        self.base = flat_config(self.rows[0])
        counted = [row for row in landed.circuits(studies) if row["counted"] and row["method"] == "node"]
        self.edges = {(row["trial"], row["task"]): math.log(row["edges"]) for row in counted}

    def variant(self, row: LandedRow) -> dict[str, Any]:
        """Fields in which a trial differs from the base."""
        return {path: value for path, value in flat_config(row).items() if value != self.base.get(path)}

    def by_seed(self, changed: Mapping[str, Any]) -> dict[int, LandedRow]:
        """Trials of a variant."""
        return {row["seed"]: row for row in self.rows if self.variant(row) == dict(changed)}

    def difference(self, contrast: Contrast) -> Measured | str:
        """Of a column, paired by seed. A variant of whose seeds half or more diverge is worse by infinity."""
        ours, theirs = self.by_seed(contrast.changed), self.by_seed(contrast.against)
        seeds = sorted(seed for seed in ours.keys() & theirs.keys() if theirs[seed]["status"] == "ok")
        if not seeds:
            return NO_ROWS
        ended = [seed for seed in seeds if ours[seed]["status"] == "ok"]
        n_diverged = len(seeds) - len(ended)
        said = f"{n_diverged} of {len(seeds)} seeds diverged"
        if 2 * n_diverged >= len(seeds):
            return Measured(math.inf, math.inf, math.inf, said, NATS)
        found = over_pairs([ours[s][contrast.column] - theirs[s][contrast.column] for s in ended])
        return Measured(
            found.value, found.low, found.high, found.over + (f", {said}" if n_diverged else ""), found.form
        )

    def edge_ratio(self, changed: Mapping[str, Any], against: Mapping[str, Any]) -> Measured | str:
        """Edges of a variant over another's, on the tasks of which both have circuits, seeds averaged."""
        ours, theirs = (self._by_task(variant) for variant in (changed, against))
        common = sorted(ours.keys() & theirs.keys())
        return over_tasks([math.exp(ours[t] - theirs[t]) for t in common]) if common else NO_ROWS

    def _by_task(self, changed: Mapping[str, Any]) -> dict[str, float]:
        names = {row["trial"] for row in self.by_seed(changed).values()}
        found: dict[str, list[float]] = {}
        for (trial, task), log_edges in self.edges.items():
            if trial in names:
                found.setdefault(task, []).append(log_edges)
        return {task: fmean(values) for task, values in found.items()}


def ablation_signs(landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """Every contrast: the difference paired by seed, and whether its sign is the paper's."""
    rows = Ablations(landed, studies)
    return [ClaimPart(contrast.name, rows.difference(contrast), contrast.rule) for contrast in CONTRASTS]


def best_activation_fraction(landed: Landed, studies: Sequence[str]) -> list[ClaimPart]:
    """Fewer activations than a quarter hurt the loss; more of them, at last all, take more edges."""
    rows = Ablations(landed, studies)
    losses = {name: rows.difference(Contrast(name, {FRACTION: fraction})) for fraction, name in FEWER}
    edges = rows.edge_ratio({FRACTION: 1.0}, {})
    return [
        ClaimPart("loss at 1/16 less that at 1/4", losses["1/16"], WORSE),
        ClaimPart("edges of all over those at 1/4", edges, Rule("above", 1)),
        *(ClaimPart(f"loss at {name} less that at 1/4", losses[name]) for name in ("1/8", "1/2", "all")),
    ]
