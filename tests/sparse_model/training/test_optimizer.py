import math
from itertools import pairwise

import pytest
import torch

from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.training.optimizer import SparseOptimizer, gradient_scale, learning_rate

TINY = ModelConfig(vocab_size=30, context=8, n_layer=1, d_model=16, d_head=4)


def parameters(*gradients: torch.Tensor) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for p, g in zip(made, gradients, strict=True):
        p.grad = g.clone()
    return made


def reference_step(weights, gradients, moments, step, n_steps, recipe):
    """One step of METHOD 3 for every tensor, in double precision and without any library optimiser."""
    size = sum(g.numel() for g in gradients.values())
    rms = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values()) / size)
    lr = learning_rate(step, n_steps, recipe)
    for name, w in weights.items():
        g = gradients[name].double() / (rms + 1e-5)
        m, v = moments[name]
        m = moments[name][0] = 0.9 * m + 0.1 * g
        v = moments[name][1] = 0.95 * v + 0.05 * g * g
        w *= 1 - lr * (0 if name == "bigram" else recipe.weight_decay)
        m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
        w -= lr * m_hat / (v_hat.sqrt() + recipe.eps)
        if name != "bigram":
            share = 1 + min(1.0, (step + 1) / (0.5 * n_steps)) * (recipe.fraction - 1)
            k = max(1, round(share * w.numel()))
            keep = w.abs().flatten().sort(descending=True, stable=True).indices[:k]
            mask = torch.zeros(w.numel(), dtype=torch.bool)
            mask[keep] = True
            w *= mask.view_as(w)


def test_five_steps_equal_the_written_out_reference():
    torch.manual_seed(0)
    model = SparseTransformer(TINY)
    recipe = TrainConfig(fraction=0.3, min_alive=0, lr=0.05)
    weights = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    moments = {name: [torch.zeros_like(w), torch.zeros_like(w)] for name, w in weights.items()}
    optimizer = SparseOptimizer(model, recipe, n_steps=8)
    for step in range(5):
        tokens = torch.randint(0, 30, (4, 9))
        model(tokens[:, :-1], targets=tokens[:, 1:]).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step(step)
        reference_step(weights, gradients, moments, step, 8, recipe)
        for name, p in model.named_parameters():
            assert torch.allclose(p.double(), weights[name], atol=1e-5), (step, name)


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("rms_over", ["all", "projected"])
def test_the_bigram_tables_gradient_by_rows_gives_the_same_weights(passes, rms_over):
    recipe = TrainConfig(fraction=0.3, min_alive=0, lr=0.05, rms_over=rms_over)
    found = []
    for by_rows in (False, True):
        torch.manual_seed(0)
        model = SparseTransformer(TINY)
        model.bigram_by_rows = by_rows
        optimizer = SparseOptimizer(model, recipe, n_steps=8)
        for step in range(5):
            for part in torch.randint(0, 30, (3, 9)).split(-(-3 // passes)):  # of 30 tokens few are seen
                model(part[:, :-1], targets=part[:, 1:]).backward()
            assert model.bigram.grad.is_sparse == by_rows
            rms = optimizer.step(step)
        found.append({"rms": rms} | {name: p.detach() for name, p in model.named_parameters()})
    for name, weight in found[0].items():
        assert torch.allclose(weight, found[1][name], atol=1e-6), name
    assert found[0]["bigram"].count_nonzero() > 100


def test_a_zeroed_weight_can_return():
    model = SparseTransformer(TINY)
    optimizer = SparseOptimizer(model, TrainConfig(fraction=0.3, min_alive=0, anneal=0, lr=0.5), n_steps=10)
    alive = []
    for step in range(6):
        tokens = torch.randint(0, 30, (4, 9))
        model(tokens[:, :-1], targets=tokens[:, 1:]).backward()
        optimizer.step(step)
        alive.append(model.layers[0].mlp.up.weight != 0)
    assert any((~before & after).any() for before, after in pairwise(alive))


def scaled(recipe: TrainConfig, *gradients: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    """The RMS of gradients, and what they are after scaling."""
    made = {str(i): p for i, p in enumerate(parameters(*gradients))}
    rms, divisor = gradient_scale(made, made, recipe)
    return float(rms), [g if divisor is None else g / divisor for g in gradients]


def test_normalised_gradients_have_unit_rms_over_all_tensors_together():
    rms, (first, _) = scaled(TrainConfig(gradient="normalize"), torch.full((10,), 3.0), torch.zeros(30))
    assert rms == pytest.approx(1.5)
    assert first.tolist() == pytest.approx([2.0] * 10, rel=1e-4)


@pytest.mark.parametrize(("gradient", "size", "expected"), [("clip", 4.0, 1.0), ("clip", 0.5, 0.5), ("none", 4.0, 4.0)])
def test_clipping_acts_on_large_gradients_only_and_none_on_no_gradient(gradient, size, expected):
    rms, (after,) = scaled(TrainConfig(gradient=gradient), torch.full((8,), size))
    assert rms == pytest.approx(size)
    assert after.tolist() == pytest.approx([expected] * 8)


def rates(**options) -> list[float]:
    recipe = TrainConfig(lr=1.0, **options)
    return [learning_rate(step, 1000, recipe) for step in range(1000)]


def test_sharkfin_is_low_while_dense_and_one_at_the_target():
    plain, fin = rates(fraction=0.04, sharkfin=False), rates(fraction=0.04)
    factors = [f / p for f, p in zip(fin, plain, strict=True)]
    assert factors[0] == pytest.approx(math.sqrt(0.04))
    assert factors[250] == pytest.approx(math.sqrt(0.04 / 0.52))
    assert factors[500:] == pytest.approx([1.0] * 500)
    assert max(range(1000), key=fin.__getitem__) == 500  # the fin's tip: the rate peaks when the target is reached


def test_warmup_then_linear_decay_to_zero_and_both_can_be_switched_off():
    assert rates(warmup=0.01)[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates(warmup=0.01)[-1] == pytest.approx(1 / 990)
    assert rates(warmup=0.0)[0] == 1.0
    assert rates(warmup=0.0, lr_decay=False) == [1.0] * 1000


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_the_bigram_table_does_not_decay_but_weights_do(fraction):
    torch.manual_seed(0)
    model = SparseTransformer(TINY)
    torch.nn.init.ones_(model.bigram)
    optimizer = SparseOptimizer(model, TrainConfig(fraction=fraction, min_alive=0, weight_decay=0.5, lr=0.1), n_steps=4)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    embedding = model.embedding.detach().clone()
    optimizer.step(0)
    assert torch.equal(model.bigram, torch.ones_like(model.bigram))
    kept = model.embedding != 0
    assert (model.embedding[kept].abs() < embedding[kept].abs()).all()


@pytest.mark.parametrize(("rms_over", "table"), [("all", 100.0), ("projected", 100.0), ("projected", 0.0)])
def test_the_bigram_table_may_be_left_out_of_the_rms_but_is_scaled_by_it(rms_over, table):
    model = SparseTransformer(TINY)
    recipe = TrainConfig(
        fraction=0.5, min_alive=0, lr=0.1, weight_decay=0, betas=(0.0, 0.0), eps=10.0, rms_over=rms_over
    )
    for name, p in model.named_parameters():
        p.grad = torch.full_like(p, table if name == "bigram" else 2.0)
    rms = float(SparseOptimizer(model, recipe, n_steps=4).step(0))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    others = sum(sizes.values()) - sizes["bigram"]
    expected = (
        2.0 if rms_over == "projected" else math.sqrt((4 * others + table**2 * sizes["bigram"]) / sum(sizes.values()))
    )
    assert rms == pytest.approx(expected)
    step = table / expected / (table / expected + 10)  # of Adam without moments
    assert float(model.bigram[0, 0]) == pytest.approx(-learning_rate(0, 4, recipe) * step, rel=1e-4)


@pytest.mark.parametrize(("decay", "vectors"), [("all", 0.95), ("matrices", 1.0)])
def test_vectors_decay_or_not(decay, vectors):
    model = SparseTransformer(TINY)
    torch.nn.init.ones_(model.layers[0].mlp.up.bias)
    torch.nn.init.ones_(model.layers[0].mlp.up.weight)
    recipe = TrainConfig(fraction=1, weight_decay=0.5, lr=0.1, warmup=0, decay=decay)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    SparseOptimizer(model, recipe, n_steps=4).step(0)
    assert model.layers[0].mlp.up.bias.tolist() == pytest.approx([vectors] * 64)
    assert torch.allclose(model.layers[0].mlp.up.weight, torch.tensor(0.95))


def test_the_anneal_begins_with_the_first_step_warm_up_or_not():
    for warmup in (0.0, 0.2):
        recipe = TrainConfig(fraction=0.2, min_alive=0, anneal=0.5, warmup=warmup)
        model = SparseTransformer(TINY)
        optimizer = SparseOptimizer(model, recipe, n_steps=10)
        optimizer.project(0)
        assert int(model.embedding.count_nonzero()) == round((1 - 0.8 / 5) * model.embedding.numel())
