"""`sweeps train` and `sweeps prune`, from text to circuit, without Ray."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit.graph.edges import edges_between
from circuit.graph.record import Circuit
from circuit.inspect.running import CircuitModel, nodes_of
from circuit.search.config import PruneConfig
from circuit.tasks import build_task, task_named
from sparse_model import storage
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import from_pretrained
from sweeps.cli import status_of

TASK, TOO_HARD = "else_elif", "var_swap"
SOME = ("layers.0.attn.in", "layers.0.attn.v")
SIZE = ["--set", "model.d_model=32", "--set", "training.lr=0.1"]


@pytest.fixture
def study(study_text: Callable[..., str], tmp_path: Path) -> str:
    """A study file whose models know little more than which token follows which: enough for one task."""
    path = tmp_path / "tiny.yaml"
    training = {"trial.training.tokens": 100_000, "trial.training.lr": 0.1, "pruning": {"pairs": 8, "solved_loss": 3.0}}
    path.write_text(study_text(training | {"target_losses": [0.6]}))
    return str(path)


def test_a_model_is_trained_and_its_circuit_found(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder, circuit_file = str(tmp_path / "model"), tmp_path / "circuit.json"
    common = ["--study", study, "--storage", str(tmp_path / "storage")]
    assert status_of(["train", model_folder, *common, "--set", "kind=dense", *SIZE]) == 0
    assert re.search(r"validation loss \d\.\d+ nats per token, \d+\.\d% of neurons dead", capsys.readouterr().out)
    assert status_of(["prune", model_folder, TASK, *common, "--out", str(circuit_file), "--stability", "1"]) == 0
    said = capsys.readouterr().out
    assert "edges" in said
    proofs = ("sufficiency", "necessity", "subsets", "agreement", "stability")
    assert all(f": {proof}: " in said for proof in proofs)
    assert "not measured: adversary: not measured; `sweeps circuit prove` makes every proof" in said
    model, tokenizer = from_pretrained(model_folder)
    circuit = Circuit.load(str(circuit_file))
    data = build_task(task_named(TASK), tokenizer, n_train=8, n_heldout=8, seed=0)
    assert CircuitModel(model, circuit).score(data.train).loss == pytest.approx(circuit.loss, rel=1e-4)
    look_at(circuit, str(circuit_file), model_folder, common, capsys)

    configs: list[PruneConfig] = []

    def found(model: Any, task: Any, means: Any, config: PruneConfig, **rest: Any) -> Circuit:
        configs.append(config)
        return circuit

    monkeypatch.setattr("sweeps.commands.one.find_circuit", found)
    for options in ([], ["--restarts", "3"]):
        assert status_of(["prune", model_folder, TASK, *common, *options]) == 0
    assert [config.restarts for config in configs] == [1, 3]


def look_at(circuit: Circuit, file: str, model: str, common: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every command for one circuit: this one, which needs no node, with some of the model's all the same."""
    assert circuit.nodes == {}
    assert status_of(["circuit", "ablate", file, "--model", model, *common]) == 0
    assert "it has no nodes" in capsys.readouterr().out
    kept = {site: torch.arange(32 if site in SOME else 0) for site in circuit.means}
    edges = tuple(edges_between(from_pretrained(model)[0], kept)[:40])
    nodes_kept = dict.fromkeys(SOME, tuple(range(32)))
    counts = {"n_nodes": 64, "n_edges": len(edges)}
    circuit = circuit.model_copy(update={"nodes": nodes_kept, "edges": edges, "method": "edge", **counts})
    circuit.save(file)
    nodes = nodes_of(circuit)
    assert status_of(["circuit", "summary", file]) == 0
    said = capsys.readouterr().out
    assert all(edge.name in said for edge in circuit.edges)
    assert circuit.summary.split("; ")[0].removeprefix("passes ").split(", ")[0] in said

    assert status_of(["circuit", "contexts", file, "--model", model, "--count", "1", *common]) == 0
    said = capsys.readouterr().out
    assert said.count("⟦") == 2 * len(nodes)

    assert status_of(["circuit", "ablate", file, "--model", model, *common]) == 0
    said = capsys.readouterr().out
    assert " on 8 held-out pairs" in said
    assert all(part.name in said for part in (*nodes, *circuit.edges))
    assert status_of(["circuit", "ablate", file, f"{nodes[0].name}=0.5", "--model", model, *common]) == 0
    assert f"{nodes[0].name}=0.5" in capsys.readouterr().out
    for wrong, told in (("nothing.1", "is no node"), (f"{nodes[0].name}=x", "allowed: a number")):
        assert status_of(["circuit", "ablate", file, wrong, "--model", model, *common]) == 2
        assert told in capsys.readouterr().err
    twice = (f"{nodes[0].name}={value}" for value in (1, 2))
    assert status_of(["circuit", "ablate", file, *twice, "--model", model, *common]) == 2
    assert "allowed: each part once" in capsys.readouterr().err
    other = ["--task", "other.jsonl"]
    assert status_of(["circuit", "ablate", file, "--model", model, *other, *common]) == 2

    out = f"{file}.proven"
    assert status_of(["circuit", "prove", file, "--model", model, "--out", out, *common]) == 1
    said = capsys.readouterr().out
    assert all(f"{proof}: " in said for proof in ("adversary", "nonsense", "shuffled weights", "agreement inside"))
    assert "not measured: stability" in said
    proven = Circuit.load(out)
    assert (proven.proofs.level, len(proven.proofs.nonsense_edges), proven.proofs.subset_draws) == ("full", 5, 200)
    assert proven.edges == circuit.edges
    assert status_of(["circuit", "prove", file, "--model", model, "--proofs", "some", *common]) == 2
    capsys.readouterr()

    assert status_of(["circuit", "binarise", file, "--model", model, *common]) == 0
    assert "with all nodes binary: loss" in capsys.readouterr().out


def released(folder: Path, tokenizer_folder: Path, model: SparseTransformer, tokenizer: Tokenizer) -> None:
    """Write a dense model of ours in the format of the paper's authors; the tokenizer with ids of its own."""
    config = model.config
    sizes = {"block_size": config.context, "vocab_size": config.vocab_size, "n_layer": 1, "d_model": config.d_model}
    sizes |= {"n_head": config.n_head_, "d_head": config.d_head, "d_mlp": config.d_mlp_, "pfrac": 1.0}
    flags = {"rms_norm": True, "afrac": None, "tied_unembed": False, "enable_bigram_table": True}
    ours, ones = {name: p.detach() for name, p in model.named_parameters()}, torch.ones(config.d_model)
    vocabulary = json.loads(tokenizer.to_json())["model"]
    letters = sorted((token for token in vocabulary["vocab"] if len(token) == 1), key=lambda s: (ord(s) > 255, ord(s)))
    released_order = [*letters, *map("".join, vocabulary["merges"])]
    released_order += [token for token in vocabulary["vocab"] if token not in set(released_order)]
    rolled = {token: i for i, token in enumerate(released_order)}
    moved = torch.tensor([vocabulary["vocab"][token] for token in released_order])
    weights = {
        "transformer.wte.weight": ours["embedding"][moved],
        "transformer.wpe.weight": torch.zeros(config.context, config.d_model),
        "transformer.ln_f.weight": ones,
        "lm_head.weight": ours["unembedding"][moved],
        "final_logits_bias": ours["unembedding_bias"][moved],
        "bigram_table": ours["bigram"][moved][:, moved],
        "transformer.h.0.ln_1.weight": ones,
        "transformer.h.0.ln_2.weight": ones,
    }
    names = {"attn.c_attn": "attn.qkv", "attn.c_proj": "attn.out", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
    for theirs, name in names.items():
        for part in ("weight", "bias"):
            weights[f"transformer.h.0.{theirs}.{part}"] = ours[f"layers.0.{name}.{part}"]
    for place in (folder, tokenizer_folder):
        place.mkdir()
    (folder / "beeg_config.json").write_text(json.dumps(sizes | flags))
    torch.save(weights, folder / "final_model.pt")
    (tokenizer_folder / "encoder.json").write_text(json.dumps(rolled))
    merges = "".join(f"{first} {second}\n" for first, second in vocabulary["merges"])
    (tokenizer_folder / "vocab.bpe").write_text("#version: 0.2\n" + merges)


def test_a_released_checkpoint_is_imported_and_pruned(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--study", study, "--storage", str(tmp_path / "storage")]
    assert status_of(["train", str(tmp_path / "trained"), *common, "--set", "kind=dense", *SIZE]) == 0
    theirs, vocabulary, ours = tmp_path / "theirs", tmp_path / "vocabulary", str(tmp_path / "ours")
    model, tokenizer = from_pretrained(str(tmp_path / "trained"))
    released(theirs, vocabulary, model, tokenizer)
    assert status_of(["import", str(theirs), "--out", ours]) == 2
    assert "name their folder with --tokenizer" in capsys.readouterr().err
    assert status_of(["import", str(theirs), "--out", ours, "--tokenizer", str(vocabulary)]) == 0
    said = capsys.readouterr()
    assert "1 layers of width 32" in said.out
    assert said.err == f"warning: {theirs}/beeg_config.json: ignored keys pfrac\n"

    circuits = {}
    for folder in (str(tmp_path / "trained"), ours):
        assert status_of(["prune", folder, TASK, *common, "--out", str(tmp_path / "circuit.json")]) == 0
        circuits[folder] = Circuit.load(str(tmp_path / "circuit.json"))
    assert "means are of the study's text in its own" in capsys.readouterr().err
    trained, imported = circuits.values()
    assert imported.unpruned_loss == pytest.approx(trained.unpruned_loss, rel=1e-3)
    assert imported.loss <= imported.target_loss
    for site, mean in imported.means.items():  # of the same text, though not of the same windows
        assert torch.tensor(mean).sub(torch.tensor(trained.means[site])).norm() < 0.2 * torch.tensor(mean).norm(), site


def test_what_would_be_written_where_nobody_wants_it_is_refused_before_any_work(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--study", study, "--storage", str(tmp_path / "storage"), "--set", "kind=dense", *SIZE]
    (tmp_path / "file").write_text("")
    out, kept = str(tmp_path / "model"), str(tmp_path / "kept")
    for arguments in (["", *common], [out, *common, "--checkpoints", ""], [out, *common, "--checkpoints", "file"]):
        with contextlib.chdir(tmp_path):
            assert status_of(["train", *arguments]) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1, said.err
        assert "data" not in said.out
    assert status_of(["train", out, *common, "--checkpoints", kept]) == 0
    names = storage.listdir(kept)
    capsys.readouterr()
    assert status_of(["prune", out, TASK, *common[:4], "--out", "/proc/nothing/c.json"]) == 2
    said = capsys.readouterr()
    assert "cannot write /proc/nothing" in said.err
    assert not said.out
    capsys.readouterr()
    assert status_of(["train", out, *common, "--checkpoints", kept, "--seed", "1"]) == 2
    said = capsys.readouterr().err
    assert "is of another run: training.seed 0, now 1; allowed: the same run again, or an empty folder\n" in said
    assert storage.listdir(kept) == names


def test_a_task_the_model_cannot_do_exits_1(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--study", study, "--storage", str(tmp_path / "storage")]
    folder = str(tmp_path / "model")
    assert status_of(["train", folder, *common, "--set", "kind=dense", *SIZE]) == 0
    assert status_of(["prune", folder, TOO_HARD, *common]) == 1
    assert "status: unreached" in capsys.readouterr().out
    assert status_of(["prune", folder, TOO_HARD, *common, "--solved-loss", "0.1"]) == 1
    said = capsys.readouterr().out
    assert "status: unsolved" in said
    assert "(--solved-loss)" in said
