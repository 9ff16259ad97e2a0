"""A folder as a newcomer has it after the demo, but small: two models that do one task, circuits, rows, a task file."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from planting import model_of_last_token

from circuit import PruneConfig, find_circuit, mean_activations
from circuit.tasks import task_data
from sparse_model import ModelConfig, SparseTransformer, Tokenizer, TokenizerConfig, save_pretrained
from sparse_model.data import programs
from sweeps.frontier import write_circuit_rows, write_trial_row
from sweeps.study import read_study

TASK, VOCABULARY, CONTEXT = "else_elif", 1024, 64
SPARSE, DENSE = "t00000-33693f6c", "t00002-ecae94c9"
"""The trials that docs/results.md names."""
STUDY = f"""
name: quickstart
corpus: {{sources: [{{source: idioms, megabytes: 0.5}}]}}
tokenizer: {{vocab_size: {VOCABULARY}}}
tasks: [{TASK}]
trial:
  kind: {{choice: [sparse, dense]}}
  model: {{n_layer: 1, context: {CONTEXT}, d_model: 16}}
  training: {{tokens: 20_000, batch_size: 8, min_alive: 1, eval_tokens: 4_000, lr: 0.1}}
  sparse: {{training: {{fraction: 0.2}}}}
  dense: {{training: {{warmup: 0.05}}}}
search: {{trials: 2, startup: 1}}
pruning: {{pairs: 16, steps: 20}}
"""


def planted_model(tokenizer: Tokenizer, seed: int) -> SparseTransformer:
    """A model that does the task."""
    config = ModelConfig(vocab_size=VOCABULARY, context=CONTEXT, n_layer=1, d_model=16, bigram=False)
    return model_of_last_token(task_data(TASK, tokenizer, pairs=64, seed=0).train, config, seed)


@pytest.fixture(scope="session")
def after_the_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that has `results/quickstart`, and what the docs call circuit.json, my_task.jsonl and so on."""
    home = tmp_path_factory.mktemp("newcomer")
    root = home / "results" / "quickstart"
    tokenizer = Tokenizer.train(itertools.islice(programs(seed=1), 600), TokenizerConfig(vocab_size=VOCABULARY))
    task = task_data(TASK, tokenizer, pairs=16, seed=0)
    tokens = [token for program in itertools.islice(programs(seed=0), 60) for token in tokenizer.encode(program)]
    text = torch.tensor(tokens[: len(tokens) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    for number, (trial, kind) in enumerate(((SPARSE, "sparse"), (DENSE, "dense"))):
        model = planted_model(tokenizer, number)
        save_pretrained(model, tokenizer, str(root / "models" / trial))
        circuit = find_circuit(model, task, mean_activations(model, text.split(32)), PruneConfig(steps=20), text=text)
        (root / "circuits" / trial).mkdir(parents=True)
        circuit.save(str(root / "circuits" / trial / f"{TASK}.json"))
        write_rows(str(root), trial, kind, 2.0 - 0.2 * number)
    for trial, kind, loss in (("t00001-adce421e", "sparse", 1.7), ("t00003-9bf9d184", "dense", 2.2)):
        write_rows(str(root), trial, kind, loss)
    (root / "study.yaml").write_text(read_study(f"storage: {home / 'results'}\n{STUDY}", "s").to_yaml())
    (home / "tiny.yaml").write_text(f"storage: ./results\n{STUDY}")
    for name, trial in (("circuit", SPARSE), ("one", SPARSE), ("other", SPARSE)):
        shutil.copy(root / "circuits" / trial / f"{TASK}.json", home / f"{name}.json")
    write_task_file(home / "my_task.jsonl")
    return home


def write_rows(root: str, trial: str, kind: str, loss: float) -> None:
    """A trial's row and those of its circuits, on two tasks: the lower its loss, the larger they are."""
    common = {"study": Path(root).name, "trial": trial, "status": "ok"}
    edges = round(100 * (3 - loss))
    figures = {"kind": kind, "val_loss": loss, "circuit_edges": float(edges), "seed": 0}
    rows = [
        {"task": task, "target_loss": 0.15, "method": "node", "edges": edges, "nodes": 5, "loss": 0.1}
        for task in ("if_equals", "var_if")
    ]
    write_circuit_rows(root, trial, [common | row for row in rows])
    sizes = {"d_model": 16, "fraction": 0.2, "target_loss": 0.15, "tasks_solved": 2, "tasks_tried": 2, "eligible": True}
    write_trial_row(root, common | figures | sizes)


def write_task_file(path: Path) -> None:
    """Pairs as docs/tasks.md has them."""
    names = ["count", "total", "size", "index", "width", "value", "item", "number"]
    with open(path, "w") as file:
        for name, number in itertools.product(names, range(6)):
            start = f"{name} = {number}\n"
            pair = {
                "prompt_a": f"{start}for {name}",
                "answer_a": " in",
                "prompt_b": f"{start}if {name}",
                "answer_b": " ==",
            }
            file.write(json.dumps(pair) + "\n")
