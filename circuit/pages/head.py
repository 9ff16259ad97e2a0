"""The head of a page: what the circuit is, how well it does, which proofs it passes, and what made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from circuit.graph.record import Circuit
from circuit.pages.roles import Places
from circuit.pages.shown import TokenTable, visible
from circuit.proofs.verdicts import LARGE_SCALE, verdicts
from circuit.tasks import TASKS, PairBatch
from sparse_model.model.config import Config


def head_data(circuit: Circuit, origin: Mapping[str, str]) -> dict[str, Any]:
    """Everything that needs no model."""
    return {
        "task": visible(circuit.task, 200),
        "description": TASKS[circuit.task].description if circuit.task in TASKS else "",
        "method": circuit.method,
        "status": circuit.status,
        "reason": _reason(circuit),
        "target": circuit.target_loss,
        "sizes": [
            ["nodes", circuit.n_nodes],
            ["edges", circuit.n_edges],
            ["embedding edges", circuit.n_embedding_edges],
            ["unembedding edges", circuit.n_unembedding_edges],
        ],
        "losses": losses(circuit),
        "curves": loss_curves(circuit),
        "proofs": proofs(circuit),
        "calibration": calibration(circuit),
        "origin": [[key, visible(str(value), 300)] for key, value in origin.items()],
    }


def proofs(circuit: Circuit) -> list[list[Any]]:
    """[proof, passed, words] of every proof there is, failures first, then passes, then what was not measured."""
    found = [[verdict.proof, verdict.passed, verdict.words] for verdict in verdicts(circuit)]
    rank = {False: 0, True: 1, None: 2}
    return sorted(found, key=lambda row: rank[row[1]])


def losses(circuit: Circuit) -> list[list[Any]]:
    """[name, value, what it is] of every loss and share that the record holds as one number."""
    return [
        [name.replace("_", " "), value, words]
        for name, value, words in fields_of(circuit)
        if isinstance(value, float) and name.endswith(("loss", "accuracy")) and name != "target_loss"
    ]


def loss_curves(circuit: Circuit) -> list[dict[str, Any]]:
    """Losses that the record holds by strength or share: resample ablation and others, as there are."""
    found = []
    for name, value, words in fields_of(circuit):
        if isinstance(value, dict) and "loss" in name and value:
            points = [[float(key), float(item)] for key, item in value.items() if isinstance(item, int | float)]
            if points:
                found.append({"name": name.replace("_", " "), "points": sorted(points), "words": words})
    return found


def fields_of(record: Config) -> Iterator[tuple[str, Any, str]]:
    """(name, value, description) of every field of a record and of the records in it: what it comes to hold shows by
    itself."""
    for name, field in type(record).model_fields.items():
        value = getattr(record, name)
        if isinstance(value, Config):
            yield from fields_of(value)
        else:
            yield name, value, field.description or ""


def calibration(circuit: Circuit) -> dict[str, Any]:
    large = circuit.status == "ok" and circuit.scale > LARGE_SCALE
    words = f"logits times {circuit.scale:.3g}, {circuit.shift:+.3g} on the answer with the lower token id"
    if large:
        words += ". That is large: much of the loss is the calibration's doing"
    return {"scale": circuit.scale, "shift": circuit.shift, "large": large, "words": words}


def _reason(circuit: Circuit) -> str:
    if circuit.status == "unsolved":
        return (
            f"The whole model does not do this task: its own loss is {circuit.unpruned_loss:.3f} nats (guessing costs "
            f"0.693). There is no circuit to show"
        )
    if circuit.status == "stopped":
        return "The search was stopped before it found a circuit"
    if circuit.status != "ok":
        return f"There is no circuit: {circuit.status}"
    if circuit.n_nodes == 0:
        return "No node is needed: what the bigram table and the biases say is enough"
    if circuit.n_edges == 0:
        return "No edge is needed: embedding, residual stream and unembedding do the task"
    return ""


def example_pair(data: PairBatch, margins: torch.Tensor, places: Places, table: TokenTable) -> dict[str, Any]:
    """The shortest pair of which both prompts are answered right, else the shortest: its tokens, cue and answers."""
    worst, length = margins.view(-1, 2).amin(1), data.length.view(-1, 2).sum(1)
    pair = min(range(data.n_pairs), key=lambda i: (bool(worst[i] <= 0), int(length[i]), i))
    sides = {}
    for side, row in zip("ab", (2 * pair, 2 * pair + 1), strict=True):
        n = int(data.length[row])
        sides[side] = {
            "tokens": table.all(data.tokens[row, :n].tolist()),
            "cue": places.cue[row, :n].nonzero().squeeze(1).tolist(),
            "right": table.of(int(data.right[row])),
            "margin": float(margins[row]),
        }
    return sides


def answers_of(data: PairBatch) -> tuple[list[int], int]:
    """The two most frequent right answers of prompts A and of prompts B, and how many answers there are in all."""
    chosen = []
    for side in (0, 1):
        ids, counts = torch.unique(data.right[side::2], return_counts=True)
        chosen.append(int(ids[counts.argmax()]))
    return chosen, len(torch.unique(torch.cat([data.right, data.wrong])))
