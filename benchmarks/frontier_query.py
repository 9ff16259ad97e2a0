"""Questions to a frontier of 100 000 trials x 20 tasks: rows planted, compacted, asked locally and on an S3 server.

cold: the first answer of a process, everything read; warm: the median of later ones, each after listing the files
anew. The S3 server (moto) runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from s3_process import S3Process

from circuit.tasks import TASKS
from sparse_model import storage
from sweeps.frontier.compaction import compact_rows
from sweeps.frontier.queries import Frontier
from sweeps.frontier.rows import (
    CIRCUIT_SCHEMA,
    TRIAL_SCHEMA,
    parquet_bytes,
    table_uri,
    write_circuit_rows,
    write_trial_row,
)

QUESTIONS: dict[str, Callable[[Frontier], object]] = {
    "pareto": lambda found: found.pareto(),
    "pareto_5_tasks": lambda found: found.pareto(tasks=list(TASKS)[:5]),
    "filter": lambda found: found.where("kind = 'sparse' AND val_loss < 2.2"),
    "sql": lambda found: found.sql(
        "SELECT t.kind, c.task, median(c.edges) AS edges FROM trials t JOIN circuits c USING (study, trial) "
        "WHERE c.status = 'ok' GROUP BY ALL ORDER BY ALL"
    ),
}


def main() -> None:
    """Print a table; with --json also write the figures as one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5, help="warm answers per question")
    parser.add_argument(
        "--small-files", type=int, default=200, help="of the trials, those in files of their own at first"
    )
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, object] = {"trials": arguments.trials, "tasks": len(TASKS)}
    with tempfile.TemporaryDirectory() as folder, S3Process() as server:
        for place, root in (("local", folder), ("s3", server.uri)):
            plant(root, arguments.trials, arguments.small_files)
            figures[place] = measured(root, arguments.rounds)
            print_figures(place, figures[place])
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=1)


def plant(root: str, n: int, small: int) -> None:
    """Rows of `n` trials: as two big files, and the last `small` trials in files of their own."""
    rng = np.random.default_rng(0)
    keys = [f"t{i:05d}-{hash_:08x}" for i, hash_ in enumerate(rng.integers(2**32, size=n))]
    kinds = np.where(rng.random(n) < 0.5, "sparse", "dense")
    losses = rng.uniform(1.8, 3.5, n)
    edges = np.exp(9 - losses[:, None] + 2.5 * (kinds == "dense")[:, None] + rng.normal(0, 0.5, (n, len(TASKS))))
    solved = rng.random((n, len(TASKS))) < 0.95
    trials = _rows(TRIAL_SCHEMA, n, study="planted", trial=keys, suggestion=np.arange(n), kind=kinds, status="ok",
                   attempt=0, eligible=True, val_loss=losses, target_loss=0.15, data="d", tasks_tried=len(TASKS),
                   tasks_solved=solved.sum(axis=1), circuit_edges=np.exp(np.log(edges).mean(axis=1)),
                   config=[json.dumps({"trial": key, "training": {"lr": 0.1, "tokens": 10**7}}) for key in keys]
    )  # fmt: skip
    circuits = _rows(CIRCUIT_SCHEMA, n * len(TASKS), study="planted", trial=np.repeat(keys, len(TASKS)),
                     task=np.tile(list(TASKS), n), target_loss=0.15, method="node",
                     status=np.where(solved, "ok", "unsolved").ravel(), edges=edges.astype(int).ravel(),
                     nodes=(edges / 3).astype(int).ravel(), loss=0.14, heldout_loss=rng.random(n * len(TASKS))
    )  # fmt: skip
    for table, rows, per_trial in (("trials", trials, 1), ("circuits", circuits, len(TASKS))):
        many = rows.slice(0, (n - small) * per_trial)
        storage.write_bytes_atomic(storage.join(table_uri(root, table), "planted.parquet"), parquet_bytes(many))
        for i in range(n - small, n):
            own = rows.slice(i * per_trial, per_trial).to_pylist()
            if table == "trials":
                write_trial_row(root, own[0])
            else:
                write_circuit_rows(root, keys[i], own)


def _rows(schema: pa.Schema, n: int, **columns: object) -> pa.Table:
    values = {
        name: pa.array([value] * n if np.isscalar(value) else value).cast(schema.field(name).type)
        for name, value in columns.items()
    }
    arrays = [values.get(field.name, pa.nulls(n, field.type)) for field in schema]
    return pa.table(arrays, schema=schema)


def measured(root: str, rounds: int) -> dict[str, object]:
    """Seconds of compaction and of every question, cold and warm."""
    compaction = seconds(lambda: compact_rows(root))
    cold = {name: seconds(lambda ask=ask: ask(Frontier(root))) for name, ask in QUESTIONS.items()}  # type: ignore[misc]
    found = Frontier(root)
    for ask in QUESTIONS.values():
        ask(found)
    warm = {
        name: statistics.median(seconds(lambda ask=ask: ask(found)) for _ in range(rounds))  # type: ignore[misc]
        for name, ask in QUESTIONS.items()
    }
    return {"compaction_s": compaction, "cold_s": cold, "warm_s": warm}


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def print_figures(place: str, figures: object) -> None:
    assert isinstance(figures, dict)
    print(f"{place}: compaction of the small files {figures['compaction_s']:.2f} s")
    for name in QUESTIONS:
        print(f"  {name:<16} cold {figures['cold_s'][name]:6.2f} s   warm {figures['warm_s'][name]:6.3f} s")


if __name__ == "__main__":
    main()
