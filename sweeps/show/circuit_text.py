"""One circuit on the terminal: the progress of its search, its figures, its proofs."""

from __future__ import annotations

from rich.console import Console

from circuit.graph.record import Circuit
from circuit.proofs.verdicts import verdicts
from circuit.search.watch import Progress, Update
from sweeps.show.progress import Show
from sweeps.trial.task_circuits import circuit_row


def searching(show: Show) -> Progress:
    """The progress of a search as a bar for each stage; nothing where there is no terminal."""

    def tell(update: Update) -> None:
        share = update.step / update.steps if update.steps else 0.0
        if show.console.is_terminal:
            show.stage(update.stage, share, f"{update.nodes:,} nodes, loss {update.loss:.3f}")

    return tell


def describe(circuit: Circuit, console: Console) -> None:
    """Print a circuit's figures, then which proofs it passes."""
    words = ("summary", "reason", "counted", *(name for name in circuit_row(circuit) if name.startswith("resample")))
    for name, value in circuit_row(circuit).items():
        if value is not None and name not in words:
            console.print(f"{name:>25}: {value:.4g}" if isinstance(value, float) else f"{name:>25}: {value}")
    marks = {True: "passes", False: "FAILS", None: "not measured"}
    if circuit.status == "unsolved":
        console.print(f"its own loss is {circuit.unpruned_loss:.3f}, too high to look for a circuit (--solved-loss)")
    if circuit.status == "unreached":
        console.print(f"the model does the task, but not even all of it reaches {circuit.target_loss:g} (--target)")
    for proof, passed, said in verdicts(circuit):
        console.print(f"{marks[passed]:>25}: {proof}: {said}", soft_wrap=True)
