"""The ablations of METHOD 3: each option does to a short training run what its name says, and the baseline does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.training.optimizer import SparseOptimizer

STEPS, LR, FRACTION = 40, 0.02, 0.25
MODEL = {"vocab_size": 30, "context": 8, "n_layer": 1, "d_model": 16, "d_head": 4}
RECIPE = {"lr": LR, "fraction": FRACTION, "warmup": 0.1}


class Run(NamedTuple):
    """What a run leaves behind: the model at its end, and what the optimiser did on the way."""

    model: SparseTransformer
    lrs: list[float]
    l0: list[int]
    seen: torch.Tensor
    """Gradient as AdamW saw it at the first step, flat over all parameters (its mean square is 1 if normalised)."""
    squares: torch.Tensor
    """AdamW's second moment after the first step, likewise."""
    moved: torch.Tensor
    """What the first step added to the weights that it changed and that stayed, in learning rates."""
    start: dict[str, torch.Tensor]

    def share(self, name: str) -> float:
        """Share of a parameter that is not zero at the end."""
        weight = self.model.get_parameter(name)
        return int(weight.count_nonzero()) / weight.numel()

    def fewest(self) -> int:
        """Fewest weights that any neuron or attention channel has at the end."""
        attn, mlp = self.model.layers[0].attn, self.model.layers[0].mlp
        rows = [attn.qkv.weight, attn.out.weight.T, mlp.up.weight, mlp.down.weight.T]
        return min(int((row != 0).sum(1).min()) for row in rows)

    def falls_until(self) -> int:
        """Steps until L0 is at its target."""
        return self.l0.index(min(self.l0)) + 1

    def first_rate(self) -> float:
        return self.lrs[0] / LR


def train(options: dict[str, Any], loss_scale: float = 1.0) -> Run:
    model_options = {key: value for key, value in options.items() if key in ModelConfig.model_fields}
    recipe_options = {key: value for key, value in options.items() if key in TrainConfig.model_fields}
    assert len(model_options) + len(recipe_options) == len(options)
    torch.manual_seed(0)
    model = SparseTransformer(ModelConfig(**(MODEL | model_options)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = SparseOptimizer(model, TrainConfig(**(RECIPE | recipe_options)), STEPS)
    lrs, l0, first = [], [], {}
    for step in range(STEPS):
        tokens = torch.randint(0, 30, (4, 9))
        (loss_scale * model(tokens[:, :-1], targets=tokens[:, 1:])).backward()
        optimizer.step(step)
        lrs.append(optimizer.adamw.param_groups[0]["lr"])
        l0.append(optimizer.l0())
        if step == 0:
            beta1 = optimizer.recipe.betas[0]
            state = [optimizer.adamw.state[p] for p in model.parameters()]
            first["seen"] = torch.cat([s["exp_avg"].flatten() / (1 - beta1) for s in state])
            first["squares"] = torch.cat([s["exp_avg_sq"].flatten() for s in state])
            moved = [(p.detach() - start[n])[p.detach() != 0] / lrs[0] for n, p in model.named_parameters()]
            first["moved"] = torch.cat(moved)[torch.cat(moved) != 0]
    return Run(model, lrs, l0, start=start, **first)


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def steps(share: float) -> Callable[[Run], bool]:
    return lambda run: run.falls_until() == round(share * STEPS)


def keeps(j: int) -> Callable[[Run], bool]:
    return lambda run: run.fewest() == j


def decay(run: Run) -> bool:
    """Without a gradient, whether weights that stay shrink."""
    weight, before = run.model.unembedding_bias.detach(), run.start["unembedding_bias"]
    kept = weight != 0
    return bool((weight[kept].abs() < before[kept].abs() * 0.99).all())


def logits_of_repeats(run: Run) -> torch.Tensor:
    """Logits (30, 8, V) of every token said eight times."""
    with torch.no_grad():
        logits: torch.Tensor = run.model(torch.arange(30)[:, None].expand(30, 8))
    return logits


def tells_positions_apart(run: Run) -> bool:
    logits = logits_of_repeats(run)
    return not torch.allclose(logits[:, :1].expand_as(logits), logits, atol=1e-3)


def remembers_the_token_alone(run: Run) -> bool:
    """Whether the logits depend on the token where the residual stream does not."""
    torch.nn.init.zeros_(run.model.embedding)
    logits = logits_of_repeats(run)
    return not torch.allclose(logits[:1].expand_as(logits), logits, atol=1e-3)


def attends_to_nothing(run: Run) -> bool:
    """Whether a head can write nothing at all: the sink's logit far above all others."""
    attention = run.model.layers[0].attn
    moved = attention.sink is not None and bool((attention.sink.detach() != 0).all())
    if attention.sink is not None:
        torch.nn.init.constant_(attention.sink, 50.0)
    q = torch.ones(1, 8, 16)
    with torch.no_grad():
        return moved and rms(attention.attend(q, q, q)) < 1e-6


def head_of(width: int) -> Callable[[Run], bool]:
    """Whether channel 0 of q decides over so many channels of the output."""

    def check(run: Run) -> bool:
        torch.manual_seed(0)
        q, k, v = torch.randn(3, 1, 8, 16)
        other = q.clone()
        other[..., 0] += 5
        attend = run.model.layers[0].attn.attend
        with torch.no_grad():
            changed = (attend(q, k, v) != attend(other, k, v)).flatten(0, 1).any(0)
        return changed.tolist() == [channel < width for channel in range(16)]

    return check


def activity(share: float) -> Callable[[Run], bool]:
    def check(run: Run) -> bool:
        seen = run.model.capture(torch.randint(0, 30, (4, 8)), ["layers.0.mlp.out", "layers.0.attn.in"])
        return all(int((x != 0).sum(-1).max()) == round(share * 16) for x in seen.values())

    return check


# name, option, what is to be seen, factor of the loss, what baseline and ablation have in common
ABLATIONS: list[Any] = [
    ("no clipping", {"gradient": "none"}, lambda run: rms(run.seen) > 10, 1e4, {}),
    ("clipping", {"gradient": "clip"}, lambda run: rms(run.seen) < 0.1, 1e-2, {}),
    ("no warm-up", {"warmup": 0.0}, lambda run: run.first_rate() > 0.49, 1.0, {}),
    ("no decay of the rate", {"lr_decay": False}, lambda run: run.lrs[-1] == pytest.approx(LR), 1.0, {}),
    ("no sharkfin", {"sharkfin": False}, lambda run: run.first_rate() == pytest.approx(1 / 4), 1.0, {}),
    ("anneal over 20 %", {"anneal": 0.2}, steps(0.2), 1.0, {}),
    ("anneal over 80 %", {"anneal": 0.8}, steps(0.8), 1.0, {}),
    ("no anneal", {"anneal": 0.0}, lambda run: run.falls_until() == 1 and len(set(run.l0)) == 1, 1.0, {}),
    ("j = 0", {"min_alive": 0}, keeps(0), 1.0, {"fraction": 0.13, "min_alive": 1}),
    ("j = 1", {"min_alive": 1}, keeps(1), 1.0, {"fraction": 0.13, "min_alive": 0}),
    ("j = 2", {"min_alive": 2}, keeps(2), 1.0, {"fraction": 0.13, "min_alive": 1}),
    ("j = 4, the paper's", {"min_alive": 4}, keeps(4), 1.0, {"fraction": 0.26, "min_alive": 1}),
    ("sink", {"attention_sink": True}, attends_to_nothing, 1.0, {}),
    ("bigram off", {"bigram": False}, lambda run: not remembers_the_token_alone(run), 1.0, {}),
    ("positions on", {"positions": "learned"}, tells_positions_apart, 1.0, {}),
    ("wider heads", {"d_head": 8}, head_of(8), 1.0, {}),
    (
        "other betas",
        {"betas": (0.8, 0.99)},
        lambda run: torch.allclose(run.squares, 0.01 * run.seen.square(), rtol=1e-3),
        1.0,
        {},
    ),
    ("small epsilon", {"eps": 1e-8}, lambda run: float(run.moved.abs().median()) > 0.99, 1.0, {"weight_decay": 0.0}),
    ("no weight decay", {"weight_decay": 0.0}, lambda run: not decay(run), 0.0, {"lr": 0.5}),
    ("dense biases", {"dense_biases": True}, lambda run: run.share("layers.0.mlp.up.bias") == 1, 1.0, {}),
    (
        "denser embeddings",
        {"embedding_fraction": 0.75},
        lambda run: (run.share("embedding"), run.share("layers.0.mlp.up.weight")) == (0.75, FRACTION),
        1.0,
        {},
    ),
    ("denser activations", {"activation_fraction": 0.5}, activity(0.5), 1.0, {"fraction": 1.0}),
]


@pytest.mark.parametrize(("options", "effect", "loss_scale", "common"), [a[1:] for a in ABLATIONS],
                         ids=[a[0] for a in ABLATIONS])  # fmt: skip
def test_an_ablation_has_its_effect_and_the_baseline_has_not(
    options: dict[str, Any], effect: Callable[[Run], bool], loss_scale: float, common: dict[str, Any]
) -> None:
    assert effect(train(common | options, loss_scale))
    assert not effect(train(common, loss_scale))


def test_the_baseline_is_the_papers() -> None:
    recipe, model = TrainConfig(), ModelConfig()
    assert (recipe.betas, recipe.eps, recipe.weight_decay, recipe.min_alive) == ((0.9, 0.95), 0.1, 0.1, 4)
    assert (recipe.anneal, recipe.warmup, recipe.lr_decay, recipe.sharkfin) == (0.5, 0.01, True, True)
    assert (model.activation_fraction, model.bigram, model.attention_sink, model.positions) == (
        0.25,
        True,
        False,
        "none",
    )
    run = train({})
    assert run.falls_until() == STEPS / 2
    assert run.first_rate() == pytest.approx(math.sqrt(FRACTION) / 4)  # of four warm-up steps the first
    assert rms(run.seen) == pytest.approx(1, rel=1e-3)
