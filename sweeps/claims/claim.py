"""What a claim is: parts that are measured, a rule for each, and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.claims.intervals import Measured
from sweeps.claims.landed import Landed

Judgement = Literal["holds", "does not hold", "not decided", "no rows yet"]

NO_ROWS = "no rows yet"
"""Why a part that no landed row is of has no figure."""


@dataclass(frozen=True)
class Rule:
    """Holds where the whole interval lies on one side of a limit, does not where all of it lies on the other."""

    side: Literal["above", "below"]
    limit: float

    def judge(self, measured: Measured) -> Judgement:
        """The verdict on a figure; not decided where it has no interval, or where that holds the limit."""
        if measured.low is None or measured.high is None:
            return "not decided"
        above, below = measured.low > self.limit, measured.high < self.limit
        wanted, unwanted = (above, below) if self.side == "above" else (below, above)
        return "holds" if wanted else "does not hold" if unwanted else "not decided"

    def __str__(self) -> str:
        return f"{self.side} {self.limit:g}"


@dataclass(frozen=True)
class ClaimPart:
    """One figure of a claim: what it is of, the figure or why there is none, and the rule. Without a rule it is shown
    and decides nothing: where the paper has no sign."""

    what: str
    found: Measured | str
    rule: Rule | None = None

    @property
    def verdict(self) -> Judgement:
        """The rule's, of a part that has one."""
        if isinstance(self.found, str):
            return "no rows yet" if self.found == NO_ROWS else "not decided"
        return "not decided" if self.rule is None else self.rule.judge(self.found)


Compute = Callable[[Landed, Sequence[str]], Sequence[ClaimPart]]
"""Parts from the rows of some studies, all of which are there."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, with all that was fixed before a run: what decides it, and what would change it."""

    number: int
    name: str
    paper: str
    decided_by: str
    changed_by: str
    sources: tuple[tuple[str, ...], ...]
    """Groups of studies; the first one that is there as a whole, and has such rows, is what the claim is judged by."""
    compute: Compute

    def finding(self, landed: Landed) -> Finding:
        """What the landed rows say of it."""
        found = Finding(self, (), ())
        for studies in self.sources:
            if landed.has(*studies):
                found = Finding(self, studies, tuple(self.compute(landed, studies)))
                if found.verdict != NO_ROWS:
                    break
        return found


@dataclass(frozen=True)
class Finding:
    """A claim with its figures, from rows of `studies`."""

    claim: Claim
    studies: tuple[str, ...]
    parts: tuple[ClaimPart, ...]

    @property
    def verdict(self) -> Judgement:
        """Does not hold where one part with a rule does not; holds where all of them do."""
        verdicts = {part.verdict for part in self.parts if part.rule is not None}
        if not verdicts or verdicts == {"no rows yet"}:
            return "no rows yet"
        if "does not hold" in verdicts:
            return "does not hold"
        return "holds" if verdicts == {"holds"} else "not decided"
