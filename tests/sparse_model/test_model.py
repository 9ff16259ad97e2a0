import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from sparse_model.config import ModelConfig
from sparse_model.loss import next_token_loss
from sparse_model.model import SparseTransformer
from sparse_model.sites import FINAL_SITE, site_names, site_width

TINY = {"vocab_size": 50, "context": 12, "n_layer": 2, "d_model": 16, "d_head": 4}
VARIANTS = [
    {},
    {"activation_fraction": 1.0},
    {"positions": "learned"},
    {"attention_sink": True},
    {"bigram": False},
    {"norm_gain": True},
    {"d_mlp": 24},
]


def build(**options) -> SparseTransformer:
    torch.manual_seed(0)
    model = SparseTransformer(ModelConfig(**TINY, **options))
    with torch.no_grad():
        for name, p in model.named_parameters():  # nothing left at its initial zero or one
            if p.dim() == 1 or name == "bigram":
                p.normal_()
    return model


def reference(model: SparseTransformer, tokens: list[int]) -> torch.Tensor:
    """Logits (T, V) of one sequence: METHOD 2 written out position by position, head by head."""
    c, D = model.config, model.config.d_model

    def norm(x, gain):
        y = x / torch.sqrt((x * x).mean() + torch.finfo(torch.float32).eps)
        return y if gain is None else y * gain

    def topk(x):
        if c.activation_fraction == 1:
            return x
        kept = x.abs().argsort(descending=True)[: int(c.activation_fraction * len(x))]
        return torch.zeros_like(x).scatter(0, kept, x[kept])

    x = [model.embedding[t] + (0 if model.positions is None else model.positions[i]) for i, t in enumerate(tokens)]
    for block in model.layers:
        qkv = [block.attn.qkv.weight @ topk(norm(r, block.attn.norm.gain)) + block.attn.qkv.bias for r in x]
        q, k, v = ([topk(z[i * D : (i + 1) * D]) for z in qkv] for i in range(3))
        after = []
        for t in range(len(x)):
            mixed = torch.zeros(D)
            for head in range(c.n_head):
                s = slice(head * c.d_head, (head + 1) * c.d_head)
                scores = torch.stack([q[t][s] @ k[u][s] / math.sqrt(c.d_head) for u in range(t + 1)])
                weights = scores.exp()
                sink = 0 if block.attn.sink is None else block.attn.sink[head].exp()
                mixed[s] = sum(w * v[u][s] for u, w in enumerate(weights)) / (weights.sum() + sink)
            after.append(x[t] + topk(block.attn.out.weight @ mixed + block.attn.out.bias))
        neurons = [
            topk(F.gelu(block.mlp.up.weight @ topk(norm(r, block.mlp.norm.gain)) + block.mlp.up.bias)) for r in after
        ]
        x = [r + topk(block.mlp.down.weight @ n + block.mlp.down.bias) for r, n in zip(after, neurons, strict=True)]
    logits = [model.unembedding @ norm(r, model.final_norm.gain) + model.unembedding_bias for r in x]
    return torch.stack(
        [z + (0 if model.bigram is None else model.bigram[t]) for z, t in zip(logits, tokens, strict=True)]
    )


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_forward_equals_the_written_out_reference(options):
    model = build(**options)
    tokens = torch.randint(0, 50, (2, 9))
    with torch.no_grad():
        got = model(tokens)
        for row, expected in zip(got, (reference(model, t.tolist()) for t in tokens), strict=True):
            assert torch.allclose(row, expected, atol=1e-4)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_fused_loss_has_the_value_and_gradients_of_the_plain_one(options):
    model = build(**options)
    tokens = torch.randint(0, 50, (3, 13))
    plain = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
    plain.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    fused = model(tokens[:, :-1], targets=tokens[:, 1:])
    (2 * fused).backward()
    assert torch.allclose(fused, plain)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, 2 * expected[name], atol=1e-6), name


def test_no_position_sees_the_future():
    model = build(attention_sink=True)
    tokens = torch.randint(0, 50, (1, 10))
    changed = tokens.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % 50
    assert torch.equal(model(tokens)[:, :6], model(changed)[:, :6])
    assert not torch.allclose(model(tokens)[:, 6:], model(changed)[:, 6:])


def test_capture_gives_every_site_with_its_width_and_sparsity():
    model = build()
    seen = model.capture(torch.randint(0, 50, (2, 7)))
    assert list(seen) == site_names(model.config)
    for name, x in seen.items():
        width = site_width(model.config, name)
        assert x.shape == (2, 7, width)
        if name != FINAL_SITE:
            assert int((x != 0).sum(-1).max()) == width // 4


@pytest.mark.parametrize("name", ["layers.0.attn.v", "layers.1.mlp.act", FINAL_SITE])
def test_replacing_a_site_by_its_own_activation_changes_nothing_and_by_another_does(name):
    model = build()
    tokens = torch.randint(0, 50, (2, 7))
    own = model.capture(tokens, [name])
    assert torch.equal(model.replace(tokens, own), model(tokens))
    assert not torch.allclose(model.replace(tokens, {name: own[name] + 1}), model(tokens))


def test_unknown_sites_are_named():
    with pytest.raises(KeyError, match=r"layers\.9\.attn\.q"):
        build().capture(torch.zeros(1, 2, dtype=torch.long), ["layers.9.attn.q"])


def test_a_sequence_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="13 tokens; the model's context is 12"):
        build()(torch.zeros(1, 13, dtype=torch.long))


def test_bfloat16_activations_stay_close_to_float32():
    model = build(activation_fraction=1.0)
    tokens = torch.randint(0, 50, (2, 9))
    exact = model(tokens)
    model.compute_dtype = torch.bfloat16
    assert (model(tokens) - exact).abs().max() < 0.15
    assert model(tokens).dtype == torch.float32


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("d_model 20 is not divisible by d_head 16", {"d_model": 20, "d_head": 16}),
        ("keeps no channel", {"activation_fraction": 0.01}),
        ("activation_fraction", {"activation_fraction": 1.5}),
        ("widht", {"widht": 3}),
    ],
)
def test_impossible_models_are_refused_by_name(field, options):
    with pytest.raises(ValidationError, match=field):
        ModelConfig(**(TINY | options))
