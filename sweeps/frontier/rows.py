"""The frontier's tables: Arrow schemas, and rows written whole, one Parquet file per trial and table.

A row's file is named after its trial and attempt: `<trial>.parquet`, and `<trial>+1.parquet` once the trial was run
again, after a failure or for circuits of a newer search. So no name ever gets other content, which is what makes
compaction safe beside writers (`compaction.py`), and the highest attempt replaces the rows of lower ones. Circuits are
written before the trial's own row, which is written last of all: where it exists, everything it speaks of exists.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from circuit.search.config import SEARCH_VERSION
from sparse_model import storage

SCHEMA_VERSION = 3
"""Raised when a column changes its meaning. A column more needs no other version: columns are read by name.

3: `circuit_edges` and its interval are over circuits that are sufficient on held-out pairs and have an edge, where they
were over all circuits; `tasks_solved` and `unpruned_loss` are of the whole model on held-out pairs. Rows of earlier
versions are read and shown, and compared among themselves only (`sweeps.comparison`).
"""


def _schema(columns: Mapping[str, tuple[Any, str]]) -> Any:
    fields = [pa.field(name, kind, metadata={"description": text}) for name, (kind, text) in columns.items()]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


TEXT, INT, FLOAT, BOOL, TIME = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us", tz="UTC")

TRIAL_SCHEMA = _schema(
    {
        "study": (TEXT, "the study's name"),
        "trial": (TEXT, "the trial's key: number of the suggestion and hash of the configuration"),
        "suggestion": (INT, "number of the search's suggestion; seeds of one configuration share it"),
        "kind": (TEXT, "sparse or dense"),
        "status": (TEXT, "ok, failed or diverged"),
        "reason": (TEXT, "why the status is not ok"),
        "attempt": (INT, "0, or how often the trial was run again: after a failure, or for circuits of a newer search"),
        "retried": (BOOL, "run again, so that this row replaces another"),
        "eligible": (BOOL, "may stand on the frontier: ok, at least min_tasks_solved tasks solved, and one counted"),
        "seed": (INT, "of weights and data order"),
        "d_model": (INT, "width of the residual stream"),
        "n_layer": (INT, "blocks"),
        "fraction": (FLOAT, "share of weights kept"),
        "l0": (INT, "nonzero weights, biases and embeddings; the bigram table not counted"),
        "total_params": (INT, "parameters, zeros and bigram table included"),
        "tokens": (INT, "training tokens seen"),
        "train_loss": (FLOAT, "nats per token, over the last logged steps"),
        "val_loss": (FLOAT, "nats per token on held-out text"),
        "tasks_solved": (INT, "tasks that the whole model does: its own loss on held-out pairs is at solved_loss"),
        "tasks_tried": (INT, "tasks of the study"),
        "tasks_counted": (INT, "solved tasks whose circuit at the target passes sufficiency and has an edge"),
        "tasks_without_edges": (INT, "solved tasks whose circuit passes sufficiency without any edge"),
        "tasks_failing_heldout": (INT, "solved tasks whose circuit fails sufficiency on held-out pairs"),
        "circuit_edges": (FLOAT, "geometric mean of edges over the counted tasks, at the study's target loss"),
        "circuit_edges_low": (FLOAT, "lower end of the 95 % bootstrap interval of circuit_edges, over tasks"),
        "circuit_edges_high": (FLOAT, "upper end of that interval"),
        "faithful_tasks": (INT, "tasks counted in faithful_edges; null where there are no circuits of that method"),
        "faithful_edges": (FLOAT, "circuit_edges of circuits of method faithful, over the tasks these count"),
        "faithful_edges_low": (FLOAT, "lower end of its 95 % bootstrap interval, over tasks"),
        "faithful_edges_high": (FLOAT, "upper end of that interval"),
        "target_loss": (FLOAT, "the study's target: task loss of those circuits, in nats"),
        "dead_neurons": (FLOAT, "share of MLP neurons never active on held-out text"),
        "kurtosis": (FLOAT, "of the final residual stream's channels"),
        "active": (FLOAT, "share of activations that are not zero, over all node sites, on held-out text"),
        "active_neurons": (FLOAT, "the same of MLP neurons, after AbsTopK"),
        "flops": (FLOAT, "of training, counted as if dense"),
        "train_seconds": (FLOAT, "spent in training steps, by each worker"),
        "prune_seconds": (FLOAT, "from the first to the last circuit, on the wall clock"),
        "devices": (FLOAT, "GPUs, or else CPU cores, that trained at a time: times train_seconds gives device seconds"),
        "dtype": (TEXT, "type of activations in training: float32 or bfloat16; weights are float32"),
        "finished": (TIME, "when the row was written"),
        "data": (TEXT, "key of the token dataset: it changes with the text it was made from"),
        "config": (TEXT, "the trial's configuration as JSON"),
        "search_version": (INT, "of the search that found its circuits (circuit.search.SEARCH_VERSION)"),
        "schema_version": (INT, "of this table"),
    }
)

CIRCUIT_SCHEMA = _schema(
    {
        "study": (TEXT, "the study's name"),
        "trial": (TEXT, "the trial's key"),
        "task": (TEXT, "the task's name"),
        "target_loss": (FLOAT, "task loss the circuit was to reach, in nats"),
        "method": (TEXT, "what was pruned: node, edge or faithful"),
        "status": (TEXT, "ok; unsolved (by the whole model), unreached (the target), failed (the search)"),
        "counted": (BOOL, "passes sufficiency on held-out pairs and has an edge: part of means of edges"),
        "reason": (TEXT, "why the search failed"),
        "nodes": (INT, "kept nodes"),
        "edges": (INT, "nonzero weights between kept nodes, embeddings not counted"),
        "embedding_edges": (INT, "nonzero embedding weights the circuit reads; never part of edges"),
        "unembedding_edges": (INT, "nonzero unembedding weights of the answers; never part of edges"),
        "loss": (FLOAT, "task loss of the circuit, calibrated, on the pairs it was searched on"),
        "heldout_loss": (FLOAT, "the same on held-out pairs"),
        "heldout_accuracy": (FLOAT, "share of held-out prompts answered right by the circuit"),
        "scale": (FLOAT, "calibration: what the circuit's logits are multiplied by"),
        "shift": (FLOAT, "calibration: added to the logit of the answer with the lower token id"),
        "uncalibrated_loss": (FLOAT, "task loss of the circuit on held-out pairs, its logits as they are"),
        "unpruned_loss": (FLOAT, "task loss of the whole model on held-out pairs, its logits as they are"),
        "harder_accuracy": (FLOAT, "share of prompts of the task's harder variant that the whole model answers right"),
        "proofs": (TEXT, "which were made: basic or full; null: none"),
        "necessity_loss": (FLOAT, "task loss of the model with only the circuit ablated, its logits as they are"),
        "necessity_calibrated_loss": (FLOAT, "the same after a scale and a shift fitted on training pairs"),
        "necessity_accuracy": (FLOAT, "share of held-out prompts that is then right"),
        "subset_loss": (FLOAT, "mean task loss over random subsets of the rest ablated"),
        "subset_worst_loss": (FLOAT, "the same in the worst of these subsets"),
        "adversary_loss": (FLOAT, "task loss in the worst subset that gradient ascent finds"),
        "nonsense_found": (INT, "of five kinds of consistent nonsense, for how many the search finds a circuit"),
        "nonsense_edges": (FLOAT, "edges of the median circuit for nonsense; null where the median is none"),
        "shuffled_weights_edges": (INT, "edges of the circuit in the model with its weights shuffled, if there is one"),
        "agreement": (FLOAT, "share of held-out prompts that the circuit decides as the whole model does"),
        "agreement_divergence": (FLOAT, "mean KL divergence of the two answers' distribution, in nats"),
        "agreement_wrong": (FLOAT, "share of the prompts the model gets wrong that the circuit decides alike"),
        "agreement_harder": (FLOAT, "the same share of prompts of the task's harder variant"),
        "divergence_harder": (FLOAT, "mean KL divergence on these, in nats"),
        "node_correlation": (FLOAT, "mean correlation of kept nodes' values in the circuit and in the whole model"),
        "attention_overlap": (FLOAT, "mean overlap of kept heads' attention in the two"),
        "backups": (INT, "further circuits of the task, each found with those before it ablated"),
        **{
            f"resample_loss_{share}": (FLOAT, f"loss with other nodes {share} % of the way to values in random text")
            for share in (25, 50, 75, 100)
        },
        "stability": (FLOAT, "mean overlap of kept nodes between searches from other seeds, if made"),
        "summary": (TEXT, "which proofs the circuit passes, which it fails, which were not measured"),
        "seconds": (FLOAT, "spent on this circuit"),
        "search_version": (INT, "of the search that found it (circuit.search.SEARCH_VERSION)"),
        "schema_version": (INT, "of this table"),
    }
)

CURVE_SCHEMA = _schema(
    {
        "study": (TEXT, "the study's name"),
        "trial": (TEXT, "the trial's key"),
        "step": (INT, "optimiser steps done"),
        "tokens": (INT, "training tokens seen"),
        "train_loss": (FLOAT, "nats per token, over the steps since the last row"),
        "val_loss": (FLOAT, "nats per token on held-out text, where it was measured at this step"),
        "lr": (FLOAT, "learning rate of this step"),
        "l0": (FLOAT, "nonzero weights"),
        "dead_neurons": (FLOAT, "share of MLP neurons never active on held-out text, where measured"),
        "seconds": (FLOAT, "spent in training steps so far"),
        "schema_version": (INT, "of this table"),
    }
)

TABLES = {"trials": TRIAL_SCHEMA, "circuits": CIRCUIT_SCHEMA, "curves": CURVE_SCHEMA}


def table_uri(root: str, table: str) -> str:
    """Folder of one of the frontier's `TABLES` below a study's folder."""
    assert table in TABLES, table
    return storage.join(root, "frontier", table)


def row_uri(root: str, table: str, trial: str, attempt: int = 0) -> str:
    """File of a trial's rows."""
    stem = storage.safe_name(trial) + (f"+{attempt}" if attempt else "")
    return storage.join(table_uri(root, table), f"{stem}.parquet")


def write_trial_row(root: str, row: Mapping[str, Any]) -> bool:
    """Write a trial's row below the study's folder `root`, unless this attempt of it has one, which stays.

    Columns left out are null, but for `finished`, which is now by default, and `search_version`, today's.
    Whether it was written.
    """
    return _write(root, "trials", row["trial"], [{"finished": datetime.now(UTC), **row}], row.get("attempt") or 0)


def write_circuit_rows(root: str, trial: str, rows: Sequence[Mapping[str, Any]], attempt: int = 0) -> bool:
    """Write all circuit rows of a trial's attempt, unless they are there; none of them leaves an empty table."""
    return _write(root, "circuits", trial, rows, attempt)


def write_curve(root: str, study: str, trial: str, points: Sequence[Mapping[str, Any]], attempt: int = 0) -> bool:
    """Write a trial's learning curve, as `sparse_model.training.TrainResult.curve` has it, unless it is there."""
    return _write(root, "curves", trial, [{"study": study, "trial": trial, **point} for point in points], attempt)


def read_rows(uri: str) -> list[dict[str, Any]]:
    """The rows in one file that this version wrote."""
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(storage.read_bytes(uri))).to_pylist()
    return rows


def _write(root: str, table: str, trial: str, rows: Sequence[Mapping[str, Any]], attempt: int) -> bool:
    """Create a file of rows: a driver that was taken for dead, or a process of its, replaces nothing that holds."""
    schema = TABLES[table]
    unknown = {name for row in rows for name in row} - set(schema.names)
    assert not unknown, unknown
    unless_told = {"search_version": SEARCH_VERSION} if "search_version" in schema.names else {}
    stamped = [unless_told | {**row, "schema_version": SCHEMA_VERSION} for row in rows]
    content = pa.Table.from_pylist(stamped, schema=schema)
    written = storage.create(row_uri(root, table, trial, attempt), parquet_bytes(content))
    for earlier in range(attempt):  # readers know better already, but other Parquet tools do not
        storage.remove(row_uri(root, table, trial, earlier))
    return written


def parquet_bytes(table: Any) -> bytes:
    """An Arrow table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
