"""Training on a GPU that is not there: the same weights as on the CPU, and no tensor left behind on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_gpu import GPU, pretend_gpu, waits

from sparse_model.data import CorpusConfig, SourceConfig, TokenDataset, TokenizerConfig, prepare
from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import from_pretrained, save_pretrained
from sparse_model.training.checkpoint import Checkpoints
from sparse_model.training.loop import Run, train

MODEL = ModelConfig(vocab_size=300, context=32, n_layer=2, d_model=32, d_head=8)
RECIPE = TrainConfig(
    tokens=32 * 8 * 30, batch_size=8, fraction=0.2, min_alive=1, lr=0.05, dtype="float32",
    log_every=5, eval_every=20, checkpoint_every=8, eval_tokens=2_000,
)  # fmt: skip
CLOCKS = {"tokens_per_second", "train_seconds"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    corpus = CorpusConfig(sources=(SourceConfig(source="idioms", megabytes=0.3),), heldout_fraction=0.05)
    return prepare(corpus, TokenizerConfig(vocab_size=300), str(tmp_path_factory.mktemp("data")))


def test_the_pretender_refuses_what_a_gpu_refuses() -> None:
    x = torch.arange(6.0).view(2, 3)
    with pretend_gpu() as gpu:
        y = x.to(gpu)
        assert (y.device, y.is_cuda, y.cpu().is_cuda, (y + 1).sum(0).device) == (gpu, True, False, gpu)
        assert torch.zeros_like(y).is_cuda
        assert not torch.zeros(2).is_cuda
        assert torch.equal((2 * y).cpu(), 2 * x)
        assert y[torch.tensor([1])].tolist() == [[3, 4, 5]]  # a GPU's tensor may be indexed from the CPU
        for mixed in (lambda: y + x, lambda: x @ y.T, lambda: x[torch.zeros(1, dtype=torch.long, device=gpu)]):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device=gpu, generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            y.numpy()


@pytest.mark.parametrize("recipe", [{}, {"gradient": "clip", "dense_biases": True}, {"min_alive": 0, "anneal": 0}])
def test_training_gives_the_weights_that_it_gives_on_the_cpu(data: TokenDataset, recipe: Any) -> None:
    asked = RECIPE.model_copy(update=recipe)
    ours = train(MODEL, asked, data)
    with pretend_gpu() as gpu:
        theirs = train(MODEL, asked, data, device=gpu)
        assert_same_weights(theirs.model, ours.model)
    for name in ours.metrics.keys() - CLOCKS:
        assert theirs.metrics[name] == pytest.approx(ours.metrics[name], rel=1e-6), name


def test_a_run_goes_on_from_its_checkpoint_and_its_model_is_kept(data: TokenDataset, tmp_path: Path) -> None:
    stores = [Checkpoints(str(tmp_path / "checkpoints")) for _ in range(2)]
    with pretend_gpu() as gpu:
        whole, again = (train(MODEL, RECIPE, data, device=gpu, checkpoints=store) for store in stores)
        assert_same_weights(again.model, whole.model)
        save_pretrained(again.model, data.tokenizer, str(tmp_path / "model"))
        loaded, _ = from_pretrained(str(tmp_path / "model"), gpu)
        assert loaded.embedding.device == GPU
        assert_same_weights(loaded, whole.model)


def test_bfloat16_learns_too(data: TokenDataset) -> None:
    recipe = RECIPE.model_copy(update={"dtype": "bfloat16"})
    with pretend_gpu() as gpu:
        theirs = train(MODEL, recipe, data, device=gpu)
    assert theirs.metrics["val_loss"] == pytest.approx(train(MODEL, recipe, data).metrics["val_loss"], abs=0.15)


@pytest.mark.parametrize("layers", [1, 3])
def test_steps_ask_a_gpu_nothing(data: TokenDataset, layers: int) -> None:
    config = MODEL.model_copy(update={"n_layer": layers})
    with pretend_gpu() as gpu:
        run = Run(config, RECIPE, data, gpu, "ddp")
        waits.clear()
        for step in range(12, 17):
            run.optimise(step)
        assert not waits
        run.log()
        assert waits


def assert_same_weights(a: SparseTransformer, b: SparseTransformer) -> None:
    for (name, one), other in zip(a.named_parameters(), b.parameters(), strict=True):
        a, b = one.detach().cpu(), other.detach().cpu()
        assert torch.equal(a == 0, b == 0), name
        # the norm of the gradients of the bigram table is summed in another order, by rows, on a CPU alone
        assert torch.allclose(a, b, rtol=0, atol=2e-6), name
