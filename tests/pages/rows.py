"""Rows of studies that nobody ran, for reports of any size."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from sweeps.frontier.rows import CIRCUIT_SCHEMA, CURVE_SCHEMA, TRIAL_SCHEMA, parquet_bytes, table_uri

SUMMARIES = (
    "passes sufficiency, necessity, control; fails resample ablation",
    "passes sufficiency; fails necessity, control",
)


def study(root: Path, n_trials: int, n_tasks: int, points: int = 3, seed: int = 0) -> str:
    """A study's folder with so many trials: some failed, one with a hostile reason, dense ones without a fraction."""
    rng = random.Random(seed)
    trials, circuits, curves = [], [], []
    for i in range(n_trials):
        kind, key = rng.choice(("sparse", "dense")), f"t{i:05d}-{rng.getrandbits(32):08x}"
        failed = i % 9 == 8
        loss = rng.uniform(1.2, 3.0)
        training: dict[str, Any] = {"lr": rng.choice((0.01, 0.03, 0.1))}
        if kind == "sparse":
            training["fraction"] = 10 ** rng.uniform(-2, -0.5)
        config = {"kind": kind, "model": {"d_model": rng.choice((64, 128))}, "training": training}
        edges = max(1, round(300 / loss**3 * rng.uniform(0.5, 2) * (1 if kind == "sparse" else 9)))
        trials.append({
            "study": "made", "trial": key, "kind": kind, "status": "failed" if failed else "ok", "attempt": 0,
            "reason": "</script><img src=x onerror=hacked=1> \u202eevil" if failed else "", "eligible": not failed,
            "val_loss": None if failed else loss, "circuit_edges": None if failed else float(edges), "seed": 0,
            "circuit_edges_low": edges * 0.6, "circuit_edges_high": edges * 1.7, "target_loss": 0.15, "n_layer": 3,
            "d_model": config["model"]["d_model"], "fraction": training.get("fraction", 1.0), "tasks_tried": n_tasks,
            "tasks_solved": 0 if failed else n_tasks, "config": json.dumps(config), "suggestion": i,
            "finished": 1_700_000_000_000_000 + i * 60_000_000, "schema_version": 2,
        })  # fmt: skip
        for t in range(0 if failed else n_tasks):
            circuits.append({
                "study": "made", "trial": key, "task": f"task_{t:02d}", "target_loss": 0.15, "method": "node",
                "status": "ok", "nodes": edges, "edges": max(0, edges + t - 5), "summary": rng.choice(SUMMARIES),
                "heldout_loss": 0.15, "schema_version": 2,
            })  # fmt: skip
        for p in range(points):
            point = {"step": p, "tokens": p * 1000, "train_loss": loss + 3 / (p + 1), "schema_version": 2}
            curves.append({"study": "made", "trial": key, **point})
    root.mkdir(parents=True, exist_ok=True)
    for table, schema, rows in (
        ("trials", TRIAL_SCHEMA, trials),
        ("circuits", CIRCUIT_SCHEMA, circuits),
        ("curves", CURVE_SCHEMA, curves),
    ):
        place = Path(table_uri(str(root), table))
        place.mkdir(parents=True)
        (place / "rows.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=schema)))
    return str(root)
