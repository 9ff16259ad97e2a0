import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from waits import Waits

from sparse_model.data import CorpusConfig, SourceConfig, TokenDataset, TokenizerConfig, prepare
from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import save_pretrained
from sparse_model.training import memory, precision
from sparse_model.training.checkpoint import Checkpoints
from sparse_model.training.loop import Run, train
from sparse_model.training.measures import evaluate

MODEL = ModelConfig(vocab_size=300, context=32, n_layer=1, d_model=32, d_head=8)
RECIPE = TrainConfig(
    tokens=32 * 8 * 40, batch_size=8, fraction=0.2, min_alive=1, lr=0.05, dtype="float32",
    log_every=5, eval_every=20, checkpoint_every=8, eval_tokens=2_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TokenDataset:
    corpus = CorpusConfig(sources=(SourceConfig(source="idioms", megabytes=0.3),), heldout_fraction=0.05)
    return prepare(corpus, TokenizerConfig(vocab_size=300), str(tmp_path_factory.mktemp("data")))


def weights(model: SparseTransformer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_sparse_model_learns_and_ends_at_its_budget(data):
    seen = []
    result = train(MODEL, RECIPE, data, report=lambda m: seen.append(dict(m)))
    assert result.status == "ok"
    assert result.metrics["val_loss"] < seen[0]["train_loss"] - 1
    assert result.metrics["val_step"] == result.metrics["step"]
    assert result.metrics["tokens"] == RECIPE.tokens
    up = result.model.layers[0].mlp.up.weight
    assert int(up.count_nonzero()) == round(0.2 * up.numel())
    assert seen[0]["l0"] > seen[-1]["l0"] == result.metrics["l0"]
    assert {"step", "lr", "tokens_per_second", "dead_neurons", "kurtosis", "val_loss"} <= seen[-1].keys()
    assert 0 <= result.metrics["dead_neurons"] < 1
    assert 0 < result.metrics["active.mlp.act"] <= 0.25  # what AbsTopK lets through
    assert result.metrics["active"] < 0.3  # all but final.in are that sparse


def test_same_seed_same_weights_other_seed_others(data):
    first, second = (train(MODEL, RECIPE, data).model for _ in range(2))
    other = train(MODEL, RECIPE.model_copy(update={"seed": 1}), data).model
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(other))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [1, 3])
def test_between_two_log_lines_steps_ask_the_device_nothing(data, layers, dtype):
    recipe = RECIPE.model_copy(update={"dtype": dtype})
    run = Run(MODEL.model_copy(update={"n_layer": layers}), recipe, data, torch.device("cpu"), "ddp")
    with Waits() as waits:
        for step in range(10, 14):
            run.optimise(step)
    assert not waits.seen
    with waits:
        run.log()
    assert set(waits.seen) == {"_local_scalar_dense"}  # the loss and L0


FLAGS = {
    "float32": "processor : 0\nflags\t\t: fpu avx512f avx512_vnni\n",
    "bfloat16": "processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n",
}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *((text, dtype) for dtype, text in FLAGS.items()),
        ("flags : fpu amx_bf16 amx_tile", "bfloat16"),
        ("Features : fp asimd bf16", "bfloat16"),
        ("Features : fp asimd\nmodel name : a bf16 one", "float32"),
        (None, "float32"),
    ],
)
def test_the_processors_flags_decide_in_which_type_it_computes(tmp_path, monkeypatch, content, expected):
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    assert precision.resolved(TrainConfig(), torch.device("cpu")).dtype == expected
    assert precision.resolved(TrainConfig(), torch.device("cuda")).dtype == "bfloat16"
    for stated in ("float32", "bfloat16"):
        assert precision.resolved(TrainConfig(dtype=stated), torch.device("cuda")).dtype == stated


@pytest.mark.parametrize("began", ["float32", "bfloat16"])
def test_a_run_that_is_continued_keeps_the_type_it_began_with(data, tmp_path, monkeypatch, began):
    other = {"float32": "bfloat16", "bfloat16": "float32"}[began]
    auto = RECIPE.model_copy(update={"dtype": "auto"})
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(FLAGS[began])
    whole = train(MODEL, auto, data, checkpoints=Checkpoints(str(tmp_path / "runs")))
    shutil.rmtree(max((tmp_path / "runs").glob("step-*")))  # there is something left to do
    (tmp_path / "cpuinfo").write_text(FLAGS[other])
    with pytest.raises(InputError, match=f"training.dtype '{began}', now '{other}'"):
        train(MODEL, auto.model_copy(update={"dtype": other}), data, checkpoints=Checkpoints(str(tmp_path / "runs")))
    resumed = train(MODEL, auto, data, checkpoints=Checkpoints(str(tmp_path / "runs")))
    assert resumed.dtype == whole.dtype == began
    assert same(weights(resumed.model), weights(whole.model))
    assert train(MODEL, auto, data).dtype == other
    save_pretrained(resumed.model, data.tokenizer, str(tmp_path / "model"))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["compute_dtype"] == began


@pytest.mark.parametrize("size", [1, 3, 8])
def test_in_several_passes_a_batch_gives_the_same_weights(data, size):
    model = MODEL.model_copy(update={"activation_fraction": 1.0})  # a tie of activations would be chosen otherwise
    parts = train(model, RECIPE.model_copy(update={"micro_batch": size}), data)
    whole = train(model, RECIPE, data)
    for name, weight in weights(whole.model).items():
        assert torch.allclose(weights(parts.model)[name], weight, atol=1e-5), name
    assert parts.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-5)


def test_a_run_may_be_continued_in_smaller_passes(data, tmp_path):
    train(MODEL, RECIPE, data, checkpoints=Checkpoints(str(tmp_path)))
    shutil.rmtree(max(tmp_path.glob("step-*")))
    smaller = RECIPE.model_copy(update={"micro_batch": 2})
    assert train(MODEL, smaller, data, checkpoints=Checkpoints(str(tmp_path))).metrics["step"] == 40


@pytest.mark.parametrize("fits", [5, 1])
def test_out_of_memory_halves_the_passes_and_changes_nothing_else(data, monkeypatch, fits):
    whole, seen = SparseTransformer.forward, []

    def small(model, tokens, at_site=None, targets=None):
        loss = whole(model, tokens, at_site, targets)
        if targets is not None:
            seen.append(len(tokens))
            if len(tokens) > fits:
                raise torch.OutOfMemoryError("planted")
        return loss

    model = MODEL.model_copy(update={"activation_fraction": 1.0})
    expected = weights(train(model, RECIPE, data).model)
    monkeypatch.setattr(SparseTransformer, "forward", small)
    found = weights(train(model, RECIPE, data).model)
    assert seen[:3] == ([8, 4, 4] if fits == 5 else [8, 4, 2])
    assert all(torch.allclose(found[name], weight, atol=1e-5) for name, weight in expected.items())


def test_rows_per_pass_by_a_devices_memory():
    assert [memory.fitting(512, room, 10) for room in (1e9, 5119, 2560, 2559, 15, 0)] == [512, 256, 256, 171, 1, 1]
    paper = ModelConfig(n_layer=8, d_model=2048, context=256)
    needed = 512 * memory.activation_bytes(paper, 2)
    assert 80e9 < needed < 110e9  # a batch of the paper's does not fit an H100


def test_a_checkpoint_of_an_earlier_version_goes_on_with_what_was_not_yet_a_choice(data, tmp_path):
    train(MODEL, RECIPE, data, checkpoints=Checkpoints(str(tmp_path)))
    shutil.rmtree(max(tmp_path.glob("step-*")))
    manifest = max(tmp_path.glob("step-*")) / "manifest.json"
    content = json.loads(manifest.read_text())
    for section, field in (("training", "decay"), ("training", "rms_over"), ("model", "initial")):
        del content["progress"]["run"][section][field]
    manifest.write_text(json.dumps(content))
    other = RECIPE.model_copy(update={"decay": "matrices"})
    with pytest.raises(InputError, match=r"training\.decay 'all', now 'matrices'"):
        train(MODEL, other, data, checkpoints=Checkpoints(str(tmp_path)))
    assert train(MODEL, RECIPE, data, checkpoints=Checkpoints(str(tmp_path))).metrics["step"] == 40


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 17, 39])
def test_a_run_broken_off_anywhere_continues_to_the_same_weights_and_figures(data, tmp_path, monkeypatch, at):
    whole = train(MODEL, RECIPE, data)
    real_batch, calls = TokenDataset.batch, []

    def breaking(self, split, step, **options):
        calls.append(step)
        if len(calls) == at + 1:
            raise Killed
        return real_batch(self, split, step, **options)

    monkeypatch.setattr(TokenDataset, "batch", breaking)
    with pytest.raises(Killed):
        train(MODEL, RECIPE, data, checkpoints=Checkpoints(str(tmp_path)))
    resumed = train(MODEL, RECIPE, data, checkpoints=Checkpoints(str(tmp_path)))
    assert calls[at + 1] == at // 8 * 8  # went on from the newest checkpoint, not from the start
    assert same(weights(resumed.model), weights(whole.model))
    for key in ("train_loss", "val_loss", "l0", "tokens", "kurtosis"):
        assert resumed.metrics[key] == whole.metrics[key], key
    for run in (whole, resumed):  # a learning curve goes on where it was, no step twice
        assert [point["step"] for point in run.curve] == list(range(5, 41, 5))
        assert [point["step"] for point in run.curve if "val_loss" in point] == [20, 40]
    assert [p["train_loss"] for p in resumed.curve] == pytest.approx([p["train_loss"] for p in whole.curve])


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(data, tmp_path):
    whole = train(MODEL, RECIPE, data, checkpoints=Checkpoints(str(tmp_path)))
    newest = sorted(tmp_path.glob("step-*"))[-1] / "__0_0.distcp"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="trying the one before"):
        resumed = train(MODEL, RECIPE, data, checkpoints=Checkpoints(str(tmp_path)))
    assert same(weights(resumed.model), weights(whole.model))


def test_checkpoints_of_another_run_are_refused_and_stay(data, tmp_path):
    train(MODEL, RECIPE, data, checkpoints=Checkpoints(str(tmp_path / "kept")))
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    corpus = CorpusConfig(sources=(SourceConfig(source="idioms", megabytes=0.2),), heldout_fraction=0.05)
    other_text = prepare(corpus, TokenizerConfig(vocab_size=300), str(tmp_path / "data"))
    others = [
        (MODEL.model_copy(update={"d_model": 64}), RECIPE, data, "model.d_model 32, now 64"),
        (MODEL, RECIPE.model_copy(update={"lr": 0.06}), data, "training.lr 0.05, now 0.06"),
        (MODEL, RECIPE, other_text, f"data.key '{data.manifest.key}', now '{other_text.manifest.key}'"),
    ]
    for model, recipe, text, difference in others:
        with pytest.raises(InputError, match=f"step-00000040-.* is of another run: {difference}; allowed: "):
            train(model, recipe, text, checkpoints=Checkpoints(str(tmp_path / "kept")))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == kept


def test_how_often_something_is_reported_or_kept_may_change_between_starts(data, tmp_path):
    train(MODEL, RECIPE, data, checkpoints=Checkpoints(str(tmp_path)))
    newest = max(tmp_path.glob("step-*"))
    shutil.rmtree(newest)  # there is something left to do
    other = RECIPE.model_copy(update={"log_every": 3, "eval_every": 7, "checkpoint_every": 11})
    resumed = train(MODEL, other, data, checkpoints=Checkpoints(str(tmp_path)))
    assert same(weights(resumed.model), weights(train(MODEL, RECIPE, data).model))


def test_time_that_was_not_yet_logged_counts_after_a_resumption(data, tmp_path, monkeypatch):
    """Checkpoints come every 8 steps, of one second each here, logs every 40."""
    rarely = RECIPE.model_copy(update={"log_every": 40, "eval_every": 40})
    real_batch, steps = TokenDataset.batch, []

    def slow(self, split, step, **options):
        steps.append(step)
        if len(steps) == 30:
            raise Killed
        return real_batch(self, split, step, **options)

    monkeypatch.setattr(TokenDataset, "batch", slow)
    monkeypatch.setattr("sparse_model.training.loop.time.monotonic", lambda: float(len(steps)))
    with pytest.raises(Killed):
        train(MODEL, rarely, data, checkpoints=Checkpoints(str(tmp_path)))
    resumed = train(MODEL, rarely, data, checkpoints=Checkpoints(str(tmp_path)))
    assert steps[30] == 24
    assert resumed.metrics["train_seconds"] == 40
    assert resumed.metrics["tokens_per_second"] == 8 * 32


def test_a_diverging_run_stops_early_with_its_reason(data):
    wild = RECIPE.model_copy(update={"lr": 1e4, "gradient": "none", "fraction": 1.0, "warmup": 0.0})
    result = train(MODEL, wild, data)
    assert result.status == "diverged"
    assert "training loss" in result.reason
    assert result.metrics["step"] < 40


def test_what_cannot_be_trained_is_refused(data):
    with pytest.raises(InputError, match="vocab_size 64; the data's tokenizer has 300"):
        train(MODEL.model_copy(update={"vocab_size": 64}), RECIPE, data)
    with pytest.raises(InputError, match="min_alive"):
        train(MODEL, RECIPE.model_copy(update={"fraction": 0.001}), data)


def test_dead_neurons_kurtosis_and_activity_of_a_hand_made_model():
    model = SparseTransformer(MODEL.model_copy(update={"activation_fraction": 1.0}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.zero_() if "layers" in name else p.normal_()
        model.layers[0].mlp.up.bias[:32] = 1.0  # a quarter of the 128 neurons always fires; gelu(0) = 0 for the others
        model.embedding.zero_()
        model.embedding[:, 0] = 1.0  # one of 32 channels carries everything: kurtosis of a one-hot vector
    figures = evaluate(model, [torch.randint(0, 300, (2, 9))])
    one_hot = torch.eye(32)[0]
    z = one_hot - one_hot.mean()
    assert figures["dead_neurons"] == pytest.approx(0.75)
    assert figures["active.mlp.act"] == pytest.approx(0.25)
    assert figures["active.attn.in"] == figures["active.final.in"] == pytest.approx(1 / 32)
    assert figures["active.attn.q"] == 0
    assert figures["active"] == pytest.approx((3 + 32) / (8 * 32 + 128))  # 8 sites of 32 channels and the neurons
    assert figures["kurtosis"] == pytest.approx(float((z**4).mean() / (z**2).mean() ** 2), rel=1e-4)


def test_sigkill_leaves_a_checkpoint_to_continue_from(data, tmp_path):
    folder = tmp_path / "checkpoints"
    script = Path(__file__).parent / "train_worker.py"
    environment = os.environ | {"MODEL": MODEL.model_dump_json(), "RECIPE": RECIPE.model_dump_json()}
    process = subprocess.Popen([sys.executable, script, data.uri, str(folder)], env=environment)
    deadline = time.monotonic() + 60
    while not list(folder.glob("step-*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    resumed = train(MODEL, RECIPE, data, checkpoints=Checkpoints(str(folder)))
    assert same(weights(resumed.model), weights(train(MODEL, RECIPE, data).model))
