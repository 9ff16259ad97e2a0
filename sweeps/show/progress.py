"""What a running study shows: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sweeps.study.space import TrialConfig
from sweeps.study.study import Study

STEP = 0.25
"""Share of a stage after which a plain line says where it is."""


class Show:
    """Everything `sweeps run` prints while it works."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self._bars = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._shares: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._bars.disable:  # rich before 14.3 ends bars that never were with an empty line
            self._bars.stop()

    def line(self, text: str) -> None:
        """One lasting line."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def stage(self, name: str, share: float, note: str = "") -> None:
        """Where something with a beginning and an end is, as a share of it done."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=1.0, note=note)
            self._shares[name] = 0.0
        self._bars.update(self._tasks[name], completed=share, note=note)
        if not self.console.is_terminal and (share - self._shares[name] >= STEP or share == 1.0 > self._shares[name]):
            self._shares[name] = share
            self.line(f"{name}: {int(100 * share)}%{' · ' if note else ''}{note}")

    def shows(self, name: str) -> bool:
        """Whether a stage has begun."""
        return name in self._tasks

    def end(self, name: str) -> None:
        """Take a stage's bar away."""
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
            del self._shares[name]


class StudyProgress:
    """The events of a study's trials as they are shown."""

    def __init__(self, show: Show, study: Study) -> None:
        self.show, self.study = show, study
        self._counts = {"done": 0, "all": study.search.trials * len(study.seeds)}

    def data(self, stage: str, share: float) -> None:
        """Preparation of the corpus; says so when an interrupted one goes on."""
        name = f"data: {stage}"
        if stage == "tokens" and 0 < share < 1 and not self.show.shows(name):
            self.show.line(f"continuing: {share:.0%} of the text is tokenised already")
        self.show.stage(name, share)

    def note(self, text: str) -> None:
        """Something about the study as a whole."""
        self.show.line(text)

    def replayed(self, count: int) -> None:
        """Trials of an earlier run that need no other."""
        self._counts["done"] = count
        if count:
            self.show.line(f"{count} of {self._counts['all']} trials are finished already")

    def learnt(self, count: int) -> None:
        """Trials of earlier studies that the search starts warm with."""
        if self.study.search.warm_start:
            self.show.line(f"warm start: {count} trials of {', '.join(self.study.search.warm_start)} fit this study")

    def started(self, key: str, config: TrialConfig) -> None:
        self.show.line(f"{key} started: {described(config)}")

    def training(self, key: str, metrics: Mapping[str, Any]) -> None:
        loss = f"train {metrics['train_loss']:.3f}"
        if "val_step" in metrics:
            loss += f", val {metrics['val_loss']:.3f} at {metrics['val_step']}"
        note = f"step {metrics['step']}/{metrics['steps']} · {loss} · L0 {metrics['l0']:,.0f}"
        self.show.stage(f"{key} training", metrics["step"] / metrics["steps"], note)

    def taken(self, key: str, model_uri: str) -> None:
        """Another study has trained the model."""
        self.show.line(f"{key} not trained again: a copy of {model_uri}")

    def warned(self, key: str, text: str) -> None:
        """Something went wrong, and the trial goes on."""
        self.show.line(f"{key} warning: {text}")

    def pruning(self, key: str, done: int, total: int) -> None:
        self.show.end(f"{key} training")
        self.show.stage(f"{key} pruning", done / total, f"{done}/{total} tasks")

    def finished(self, key: str, row: Mapping[str, Any]) -> None:
        """A trial's row is written."""
        self.show.end(f"{key} training")
        self.show.end(f"{key} pruning")
        self._counts["done"] += 1
        self.show.line(f"{key} {outcome(row)} ({self._counts['done']}/{self._counts['all']})")


def described(config: TrialConfig) -> str:
    """A configuration in a few words."""
    model, training = config.model, config.training
    sparsity = f", fraction {training.fraction:.3g}, anneal {training.anneal:g}" if config.kind == "sparse" else ""
    return (
        f"{config.kind}, {model.n_layer} layers of width {model.d_model}{sparsity}, "
        f"{training.tokens:,} tokens, seed {training.seed}"
    )


def outcome(row: Mapping[str, Any]) -> str:
    """How a trial ended, in a few words."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    edges = row["circuit_edges"]
    beside = {"tasks_without_edges": "without edges", "tasks_failing_heldout": "failing on held-out pairs"}
    apart = "".join(f", {row[name]} {words}" for name, words in beside.items() if row[name])
    circuits = f", {edges:,.0f} edges per circuit that counts" if edges is not None else ""
    return f"ok: loss {row['val_loss']:.3f}, {row['tasks_solved']}/{row['tasks_tried']} tasks solved{circuits}{apart}"
