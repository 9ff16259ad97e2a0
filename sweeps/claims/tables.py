"""The tables of docs/results.md, written from landed rows between two comments; the prose around them is by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, geometric_mean, median
from typing import Any

from circuit.search.config import METHODS
from sparse_model.errors import InputError
from sweeps.claims.ablation import CONTRASTS, FEWER, FRACTION, Ablations, Contrast
from sweeps.claims.claim import ClaimPart, Finding
from sweeps.claims.fronts import ALL_TARGETS, TARGET, TaskEdges, mismatch, ratio_of_kinds, task_edges
from sweeps.claims.landed import Landed, LandedRow
from sweeps.claims.table import CLAIMS

MARKED = re.compile(r"(<!-- rows: ([^\n]+?) -->\n)(.*?)(<!-- end of rows -->)", re.DOTALL)
MOST_PARTS = 4
"""Parts of a claim beyond which its line counts them, and `parts` lists them."""


def written_page(text: str, landed: Landed) -> str:
    """A page with what lies between its markers written anew; InputError for a marker of no table."""
    return MARKED.sub(lambda found: f"{found[1]}{_table(found[2], landed)}\n{found[4]}", text)


def _table(asked: str, landed: Landed) -> str:
    name, *arguments = asked.split()
    if name not in TABLES_WRITTEN:
        raise InputError(f"rows: {name}; allowed: {', '.join(TABLES_WRITTEN)}")
    return TABLES_WRITTEN[name](landed, arguments)


def claims_table(landed: Landed, arguments: Sequence[str]) -> str:
    """Every claim with its figures and its verdict."""
    findings = [claim.finding(landed) for claim in CLAIMS]
    rows = [
        (f.claim.number, f.claim.name, f.claim.paper, _ours(f), ", ".join(f.studies) or "–", f"**{f.verdict}**")
        for f in findings
    ]
    return markdown(("", "claim", "the paper", "ours (95 % interval)", "rows of", "verdict"), rows)


def rules_table(landed: Landed, arguments: Sequence[str]) -> str:
    """How each claim is decided, and what would change it."""
    rows = [(claim.number, claim.name, claim.decided_by, claim.changed_by) for claim in CLAIMS]
    return markdown(("", "claim", "holds where", "what would change it"), rows)


def parts_table(landed: Landed, arguments: Sequence[str]) -> str:
    """All parts of the claims of one number."""
    found = [part for claim in CLAIMS if claim.number == int(arguments[0]) for part in claim.finding(landed).parts]
    rows = [(part.what, part.found, part.rule or "no sign", _verdict(part)) for part in found]
    return markdown(("", "ours (95 % interval)", "holds", "verdict"), rows) if rows else "No rows yet."


def models_table(landed: Landed, arguments: Sequence[str]) -> str:
    """The models of some studies, from the lowest validation loss on."""
    if not landed.has(*arguments):
        return "No rows yet."
    comparison = landed.frontier(arguments).compared()
    shown = [row for row in comparison.table().to_pylist() if row["status"] == "ok"]
    common = len(comparison.tasks)
    heads = ("model", "seed", "nonzeros", "validation loss", "tasks solved", "fail on held-out pairs")
    edges = ("edges, its own tasks", "faithful edges", f"edges, {common} common tasks")
    rows = [
        (
            *(_model(row), row["seed"], f"{row['l0']:,}", f"{row['val_loss']:.3f}", row["tasks_solved"]),
            row["tasks_failing_heldout"],
            *(_edges(row[name]) for name in ("circuit_edges", "faithful_edges", "edges")),
        )
        for row in sorted(shown, key=lambda row: row["val_loss"])
    ]
    return markdown((*heads, *edges), rows)


def ablations_table(landed: Landed, arguments: Sequence[str]) -> str:
    """Every variant against the base: loss, edges, what died."""
    if not landed.has("ablations"):
        return "No rows yet."
    rows = Ablations(landed, ["ablations"])
    fewer = [Contrast(f"AbsTopK keeps {name}", {FRACTION: fraction}) for fraction, name in FEWER]
    simple = [contrast for contrast in CONTRASTS if not contrast.against and contrast.column == "val_loss"]
    lines: list[Sequence[Any]] = [("the base", _mean(rows, {}, "val_loss", "{:.3f}"), "–", "–", *_means(rows, {}))]
    for contrast in (*simple, *fewer):
        change, edges = rows.difference(contrast), rows.edge_ratio(contrast.changed, {})
        loss = _mean(rows, contrast.changed, "val_loss", "{:.3f}")
        lines.append((contrast.name, loss, change, edges, *_means(rows, contrast.changed)))
    heads = ("", "loss", "loss less the base's", "edges over the base's", "tasks solved", "dead neurons", "kurtosis")
    return markdown(heads, lines)


def studies_table(landed: Landed, arguments: Sequence[str]) -> str:
    """What has landed."""
    rows = []
    for study in landed.studies:
        trials = [row for row in landed.trials([study]) if row["status"] == "ok"]
        circuits = sum(bool(row["counted"]) for row in landed.circuits([study]))
        tokens, seconds = ([row[name] for row in trials] for name in ("tokens", "train_seconds"))
        hours = (sum(seconds) + sum(row["prune_seconds"] or 0 for row in trials)) / 3600
        rows.append((f"[{study}](data/{study}/study.yaml)", len(trials), f"{max(tokens):,}", circuits, f"{hours:.1f}"))
    return markdown(("study", "models", "tokens each", "circuits that count", "core hours"), rows)


def targets_table(landed: Landed, arguments: Sequence[str]) -> str:
    """Of models matched in loss: edges of both kinds at every task loss by each method, over common tasks."""
    studies = [study for study in arguments if landed.has(study)]
    if not studies:
        return "No rows yet."
    if (problem := mismatch(landed, studies)) is not None:
        return f"{problem}."
    edges = task_edges(landed, studies)
    methods = [method for method in METHODS if any(method == key[1] for key in edges)]
    heads = [f"{method}: {what}" for method in methods for what in ("sparse", "dense", "ratio")]
    rows = [
        (f"{target:g}", *(cell for method in methods for cell in _at_target(edges, method, target)))
        for target in ALL_TARGETS
    ]
    return markdown(("task loss", *heads), rows)


def _at_target(edges: TaskEdges, method: str, target: float) -> tuple[str, str, str]:
    sparse, dense = (edges.get((kind, method, target), {}) for kind in ("sparse", "dense"))
    common = sorted(sparse.keys() & dense.keys())
    if not common:
        return "–", "–", "–"
    means = [math.exp(fmean(fmean(kind[task]) for task in common)) for kind in (sparse, dense)]
    return _edges(means[0]), _edges(means[1]), str(ratio_of_kinds(edges, method, target))


def proofs_table(landed: Landed, arguments: Sequence[str]) -> str:
    """What full proofs say of the circuits that count, by kind of model and method."""
    made = [
        row
        for row in (landed.circuits(arguments) if landed.has(*arguments) else ())
        if row["counted"] and row["proofs"] == "full" and row["target_loss"] == TARGET
    ]
    groups = [(kind, method) for kind in ("sparse", "dense") for method in METHODS]
    heads = ("", "circuits", "edges", "nonsense found", "its edges over the circuit's", "in shuffled weights")
    more = ("have backups", "fresh subsets: mean", "worst of 200", "adversary")
    rows = []
    for kind, method in groups:
        here = [row for row in made if (row["kind"], row["method"]) == (kind, method)]
        if here:
            rows.append((f"{kind}, {method}", len(here), *_proved(here)))
    return markdown((*heads, *more), rows) if rows else "No rows yet."


def _proved(rows: Sequence[LandedRow]) -> tuple[str, ...]:
    """Shares of circuits, geometric means of edges, medians of losses."""
    nonsense = [row["nonsense_edges"] / row["edges"] for row in rows if row["nonsense_edges"] is not None]
    there = {name: [row[name] for row in rows if row[name] is not None] for name in FIGURES}
    tried, shuffled = there["nonsense_found"], [row["shuffled_weights_edges"] is not None for row in rows]
    return (
        _edges(geometric_mean(row["edges"] for row in rows)),
        f"{fmean(tried):.1f} of 5" if tried else "–",
        f"{geometric_mean(nonsense):.1f} ×, of {len(nonsense)}" if nonsense else "–",
        f"{sum(shuffled)} of {len(tried)}" if tried else "–",  # both controls are of the same text, or neither is
        f"{sum(map(bool, there['backups']))} of {len(there['backups'])}" if there["backups"] else "–",
        *(f"{median(there[name]):.2f}" if there[name] else "–" for name in FIGURES[2:]),
    )


FIGURES = ("nonsense_found", "backups", "subset_loss", "subset_worst_loss", "adversary_loss")
"""Columns of full proofs that are null where a proof was not made."""


def markdown(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |".replace("|  |", "| |") for line in lines)


def _ours(finding: Finding) -> str:
    parts = finding.parts
    if not parts or finding.verdict == "no rows yet":
        return "no rows yet"
    ruled = [part for part in parts if part.rule is not None]
    if len(ruled) > MOST_PARTS:
        counts = [(verdict, sum(part.verdict == verdict for part in ruled)) for verdict in VERDICTS]
        return f"{len(ruled)} figures: " + ", ".join(f"{n} {verdict}" for verdict, n in counts if n)
    return "<br>".join(f"{part.what}: {part.found}" for part in parts)


VERDICTS = ("holds", "does not hold", "not decided", "no rows yet")


def _verdict(part: ClaimPart) -> str:
    return "–" if part.rule is None else part.verdict


def _model(row: Mapping[str, Any]) -> str:
    fraction = f", fraction {row['fraction']:.3g}" if row["kind"] == "sparse" else ""
    return f"{row['kind']}, width {row['d_model']}{fraction}"


def _edges(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _means(rows: Ablations, changed: Mapping[str, Any]) -> tuple[str, str, str]:
    columns = (("tasks_solved", "{:.1f}"), ("dead_neurons", "{:.2f}"), ("kurtosis", "{:.1f}"))
    solved, dead, kurtosis = (_mean(rows, changed, name, form) for name, form in columns)
    return solved, dead, kurtosis


def _mean(rows: Ablations, changed: Mapping[str, Any], column: str, form: str) -> str:
    values = [row[column] for row in rows.by_seed(changed).values() if row[column] is not None]
    return form.format(fmean(values)) if values else "–"


TABLES_WRITTEN: dict[str, Callable[[Landed, Sequence[str]], str]] = {
    "claims": claims_table,
    "rules": rules_table,
    "parts": parts_table,
    "models": models_table,
    "ablations": ablations_table,
    "studies": studies_table,
    "targets": targets_table,
    "proofs": proofs_table,
}
"""Tables by the names that markers call them by."""
