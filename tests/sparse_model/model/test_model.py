import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from sparse_model.model.config import ModelConfig
from sparse_model.model.loss import next_token_loss
from sparse_model.model.sites import FINAL_SITE, site_names, site_width
from sparse_model.model.transformer import SparseTransformer

TINY = {"vocab_size": 50, "context": 12, "n_layer": 2, "d_model": 16, "d_head": 4}
VARIANTS = [
    {},
    {"activation_fraction": 1.0},
    {"positions": "learned"},
    {"attention_sink": True},
    {"bigram": False},
    {"norm_gain": True},
    {"d_mlp": 24},
    {"activation": "relu", "biases": False},
    {"n_head": 3, "d_head": 8, "attention_sink": True},
    {"norm": "layer", "norm_gain": True, "norm_offset": True, "tied_embeddings": True},
    {"norm": "layer"},
    {"sparse_sites": ("attn.q", "mlp.out")},
    {"sparse_sites": ("mlp.act", "resid.mid", "resid.post"), "residual_relu": True},
    {"positions": "concatenated", "d_position": 6, "norm_gain": True},
    {"positions": "concatenated", "d_position": 5, "norm": "layer", "norm_offset": True},
]


def build(**options) -> SparseTransformer:
    torch.manual_seed(0)
    model = SparseTransformer(ModelConfig(**(TINY | options)))
    with torch.no_grad():
        for name, p in model.named_parameters():  # nothing left at its initial zero or one
            if p.dim() == 1 or name == "bigram":
                p.normal_()
    return model


def reference(model: SparseTransformer, tokens: list[int]) -> torch.Tensor:
    """Logits (T, V) of one sequence: METHOD 2 written out position by position, head by head."""
    c = model.config

    def norm(x, module):
        if c.norm == "rms":
            y = x / torch.sqrt((x * x).mean() + torch.finfo(torch.float32).eps)
        else:
            y = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
        y = y if module.gain is None else y * module.gain
        return y if module.offset is None else y + module.offset

    def topk(x, kind):
        if c.activation_fraction == 1 or kind not in c.sparse_sites:
            return x
        kept = x.abs().argsort(descending=True)[: int(c.activation_fraction * len(x))]
        return torch.zeros_like(x).scatter(0, kept, x[kept])

    def read(sublayer, r, t, kind):
        beside = [norm(model.positions[t], sublayer.position_norm)] if c.positions == "concatenated" else []
        return topk(torch.cat([norm(r, sublayer.norm), *beside]), kind)

    def linear(module, x):
        return module.weight @ x + (0 if module.bias is None else module.bias)

    def stream(x, kind):
        return topk(x.clamp_min(0) if c.residual_relu else x, kind)

    activation = {"gelu": F.gelu, "relu": F.relu}[c.activation]
    x = [model.embedding[t] + (model.positions[i] if c.positions == "learned" else 0) for i, t in enumerate(tokens)]
    for block in model.layers:
        qkv = [linear(block.attn.qkv, read(block.attn, r, t, "attn.in")) for t, r in enumerate(x)]
        A = c.n_head_ * c.d_head
        q, k, v = ([topk(z[i * A : (i + 1) * A], f"attn.{'qkv'[i]}") for z in qkv] for i in range(3))
        after = []
        for t in range(len(x)):
            mixed = torch.zeros(A)
            for head in range(c.n_head_):
                s = slice(head * c.d_head, (head + 1) * c.d_head)
                scores = torch.stack([q[t][s] @ k[u][s] / math.sqrt(c.d_head) for u in range(t + 1)])
                weights = scores.exp()
                sink = 0 if block.attn.sink is None else block.attn.sink[head].exp()
                mixed[s] = sum(w * v[u][s] for u, w in enumerate(weights)) / (weights.sum() + sink)
            after.append(stream(x[t] + topk(linear(block.attn.out, mixed), "attn.out"), "resid.mid"))
        neurons = [
            topk(activation(linear(block.mlp.up, read(block.mlp, r, t, "mlp.in"))), "mlp.act")
            for t, r in enumerate(after)
        ]
        written = [topk(linear(block.mlp.down, n), "mlp.out") for n in neurons]
        x = [stream(r + w, "resid.post") for r, w in zip(after, written, strict=True)]
    logits = [model.unembedding @ norm(r, model.final_norm) + model.unembedding_bias for r in x]
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
        ("keeps no channel of attn.q", {"activation_fraction": 0.1, "n_head": 1}),
        ("d_position None with positions concatenated", {"positions": "concatenated"}),
        ("d_position 4 with positions learned", {"positions": "learned", "d_position": 4}),
        ("norm_offset", {"norm_offset": True}),
        ("sparse_sites attn.q, attn.q; allowed: each once", {"sparse_sites": ["attn.q", "attn.q"]}),
        ("sparse_sites", {"sparse_sites": ["attn.x"]}),
        ("widht", {"widht": 3}),
    ],
)
def test_impossible_models_are_refused_by_name(field, options):
    with pytest.raises(ValidationError, match=field):
        ModelConfig(**(TINY | options))


@pytest.mark.parametrize(("initial", "expected"), [("fan_in", 1 / math.sqrt(64)), ("gpt2", 0.02)])
def test_initial_values_have_the_width_that_is_asked_for(initial, expected):
    torch.manual_seed(0)
    model = SparseTransformer(ModelConfig(vocab_size=500, n_layer=2, d_model=64, initial=initial))
    up, down = model.layers[0].mlp.up.weight, model.layers[0].mlp.down.weight
    assert float(model.embedding.detach().std()) == pytest.approx(expected, rel=0.05)
    assert float(up.detach().std()) == pytest.approx(expected, rel=0.05)
    fan_in = 1 / math.sqrt(256) if initial == "fan_in" else 0.02
    assert float(down.detach().std()) == pytest.approx(fan_in / math.sqrt(2 * 2), rel=0.05)
    assert not model.layers[0].mlp.up.bias.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_and_evaluation_add_the_bias_in_one_precision(dtype):
    torch.manual_seed(0)
    model = SparseTransformer(ModelConfig(vocab_size=50, n_layer=1, d_model=32), dtype)
    torch.nn.init.normal_(model.unembedding_bias, std=30)  # in bfloat16 it would be off by a tenth
    tokens = torch.randint(0, 50, (4, 17))
    in_training = model(tokens[:, :-1], targets=tokens[:, 1:])
    in_evaluation = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
    torch.testing.assert_close(in_training, in_evaluation, rtol=1e-5, atol=1e-5)
