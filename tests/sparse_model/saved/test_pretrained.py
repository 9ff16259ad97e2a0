import json
import math

import pytest
import tokenizers
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sparse_model.data import Tokenizer, TokenizerConfig
from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import from_pretrained, save_pretrained


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["for x in range(3):\n    print(x, 'abc', total)\n"] * 3
    return Tokenizer.train(texts, TokenizerConfig(vocab_size=262))


@pytest.fixture
def model() -> SparseTransformer:
    torch.manual_seed(0)
    return SparseTransformer(
        ModelConfig(vocab_size=262, context=16, n_layer=1, d_model=16, d_head=4, attention_sink=True)
    )


def test_round_trip_gives_equal_logits_and_tokens(model, tokenizer, root_uri):
    save_pretrained(model, tokenizer, root_uri)
    again, tokenizer_again = from_pretrained(root_uri)
    tokens = torch.tensor([tokenizer.encode("for x in range")])
    assert torch.equal(again(tokens), model(tokens))
    assert again.config == model.config
    assert tokenizer_again.encode("print(x)") == tokenizer.encode("print(x)")


def test_hugging_face_reads_the_separators_name_in_a_text_as_we_do(model, tokenizer, tmp_path):
    from transformers import AutoTokenizer  # takes a second

    save_pretrained(model, tokenizer, str(tmp_path))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("a<|endoftext|>b", "<|endoftext|>", "for x in range(3):\n    print(x)\n", "  é\r\n"):
        assert tokenizer.encode(text) == theirs.encode(text) == plain.encode(text).ids
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eot not in tokenizer.encode("a<|endoftext|>b")


@pytest.mark.parametrize(
    "options",
    [
        {"tied_embeddings": True, "norm": "layer", "norm_gain": True, "norm_offset": True},
        {"positions": "concatenated", "d_position": 6, "biases": False, "bigram": False},
        {"sparse_sites": ["mlp.act", "resid.mid"], "residual_relu": True, "activation": "relu", "n_head": 3},
        {"positions": "learned", "attention_sink": True, "d_mlp": 20, "activation_fraction": 0.5},
    ],
    ids=str,
)
def test_every_option_survives_the_round_trip(options, tokenizer, tmp_path):
    model = SparseTransformer(ModelConfig(vocab_size=262, context=16, n_layer=2, d_model=16, d_head=4, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save_pretrained(model, tokenizer, str(tmp_path))
    again, _ = from_pretrained(str(tmp_path))
    tokens = torch.randint(0, 262, (2, 16))
    assert again.config == model.config
    assert torch.equal(again(tokens), model(tokens))
    if model.config.tied_embeddings:
        assert again.unembedding is again.embedding


def test_the_folder_is_what_hugging_face_libraries_expect(model, tokenizer, tmp_path):
    save_pretrained(model, tokenizer, str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["SparseTransformer"]
    assert config["model_type"] == "sparse_transformer"
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:  # transformers reads no other format
        assert weights.metadata() == {"format": "pt"}
        assert set(weights.keys()) == {name for name, _ in model.named_parameters()}
    foreign = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    special = json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"]
    assert foreign.token_to_id(special) == config["eos_token_id"] == tokenizer.eot
    assert foreign.encode("for x in range").ids == tokenizer.encode("for x in range")


def test_a_vocabulary_with_room_to_spare_is_fine_and_one_that_is_too_small_is_not(tokenizer, tmp_path):
    sizes = {"context": 16, "n_layer": 1, "d_model": 16, "d_head": 4}
    save_pretrained(SparseTransformer(ModelConfig(vocab_size=264, **sizes)), tokenizer, str(tmp_path))
    assert from_pretrained(str(tmp_path))[0].config.vocab_size == 264
    save_pretrained(SparseTransformer(ModelConfig(vocab_size=261, **sizes)), tokenizer, str(tmp_path))
    with pytest.raises(InputError, match="tokenizer of 262 tokens with a model of 261"):
        from_pretrained(str(tmp_path))


def test_truncated_weights_are_refused(model, tokenizer, tmp_path):
    save_pretrained(model, tokenizer, str(tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: truncated"):
        from_pretrained(str(tmp_path))


def drop(weights):
    del weights["embedding"]


def add(weights):
    weights["extra.weight"] = torch.zeros(2)


def reshape(weights):
    weights["embedding"] = torch.zeros(3, 3)


def spoil(weights):
    weights["embedding"][0, 0] = math.inf


def make_integer(weights):
    weights["embedding"] = weights["embedding"].to(torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"missing tensors \['embedding'\]"),
        (add, r"unknown tensors \['extra\.weight'\]"),
        (reshape, r"\[3, 3\]"),
        (spoil, "embedding has numbers that are not finite"),
        (make_integer, r"embedding is a tensor of torch\.int8"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(model, tokenizer, tmp_path, change, message):
    save_pretrained(model, tokenizer, str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message):
        from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"model_type": "gpt2"}', json.dumps({"format": "other", "version": 1})]
)
def test_foreign_configurations_are_refused(model, tokenizer, tmp_path, content):
    save_pretrained(model, tokenizer, str(tmp_path))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        from_pretrained(str(tmp_path))


@pytest.mark.parametrize("content", [b"\xff\xfe{", b'{"version": '])
def test_a_damaged_tokenizer_is_refused_by_its_path(model, tokenizer, tmp_path, content):
    save_pretrained(model, tokenizer, str(tmp_path))
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"{tmp_path}/tokenizer\.json: "):
        from_pretrained(str(tmp_path))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        from_pretrained(str(tmp_path))
