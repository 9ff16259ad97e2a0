import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparse_model.config import ModelConfig
from sparse_model.data import Tokenizer, TokenizerConfig
from sparse_model.errors import InputError
from sparse_model.model import SparseTransformer
from sparse_model.pretrained import from_pretrained, save_pretrained


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


@pytest.mark.parametrize(
    ("change", "message"),
    [(drop, r"missing tensors \['embedding'\]"), (add, r"unknown tensors \['extra\.weight'\]"), (reshape, r"\[3, 3\]")],
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


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        from_pretrained(str(tmp_path))
