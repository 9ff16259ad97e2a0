"""Models on disk, as a Hugging Face folder: model.safetensors, config.json, tokenizer.json and its config.

Strict on the way back.
"""

from __future__ import annotations

import json

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sparse_model import storage
from sparse_model.data.tokenizer import END_OF_TEXT, Tokenizer
from sparse_model.distributed.sharding import gathered_whole
from sparse_model.distributed.workers import rank
from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.storage.text import read_json

MODEL_FORMAT = {"format": "circuit-sweeps/sparse-transformer", "version": 1}


def save_pretrained(model: SparseTransformer, tokenizer: Tokenizer, uri: storage.PathOrURI) -> None:
    """Write the files under a folder or fsspec URI, the weights last: a folder with weights is complete.

    Hugging Face libraries read the tokenizer and the tensors (a tied unembedding once) as they are. In a process group
    every worker calls this alike, and the first writes.
    """
    folder = storage.as_uri(uri)
    weights = _whole_weights(model)
    if rank():
        return
    files = {
        "config.json": _json(_config(model, tokenizer)),
        "tokenizer.json": tokenizer.to_json().encode(),
        "tokenizer_config.json": _json(_tokenizer_config(model)),
        "model.safetensors": save(weights, metadata={"format": "pt"}),
    }
    for name, content in files.items():
        storage.write_bytes_atomic(storage.join(folder, name), content)


def _whole_weights(model: SparseTransformer) -> dict[str, Tensor]:
    """All weights, on the first worker; of a sharded model the others hold one tensor at a time, and drop it."""
    names = {name for name, _ in model.named_parameters()}
    weights = {}
    for name, p in model.state_dict().items():
        if name in names:
            whole = gathered_whole(p)
            if rank() == 0:
                weights[name] = whole.cpu().contiguous()
    return weights


def _config(model: SparseTransformer, tokenizer: Tokenizer) -> dict[str, object]:
    """Our own description of the model, below the keys by which others tell what a folder holds."""
    return {
        "architectures": [type(model).__name__],
        "model_type": "sparse_transformer",
        "dtype": "float32",
        "eos_token_id": tokenizer.eot,
        **MODEL_FORMAT,
        "compute_dtype": str(model.compute_dtype).removeprefix("torch."),
        "model": model.config.model_dump(mode="json"),
    }


def _tokenizer_config(model: SparseTransformer) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "split_special_tokens": True,  # text that contains the separator's name is text
        "model_max_length": model.config.context,
        "clean_up_tokenization_spaces": False,
    }


def _json(content: dict[str, object]) -> bytes:
    return json.dumps(content, indent=2).encode()


def from_pretrained(uri: storage.PathOrURI, device: str | torch.device = "cpu") -> tuple[SparseTransformer, Tokenizer]:
    """Read back what `save_pretrained` wrote; a truncated or foreign file is an InputError that names it."""
    uri = storage.as_uri(uri)
    config = _read_config(uri)
    weights = _read_weights(config, uri)
    model = SparseTransformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    tokenizer = Tokenizer.load(storage.join(uri, "tokenizer.json"))
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(f"{uri}: tokenizer of {tokenizer.vocab_size} tokens with a model of {model.config.vocab_size}")
    return model.to(device).eval(), tokenizer


def _read_config(uri: str) -> ModelConfig:
    path = storage.join(uri, "config.json")
    if not storage.exists(path) and storage.exists(storage.join(uri, "beeg_config.json")):
        raise InputError(f"{uri}: a checkpoint as the paper's authors released it; `sweeps import` makes a model of it")
    if not storage.exists(path):
        below = [name for name in storage.listdir(uri) if storage.exists(storage.join(uri, name, "config.json"))]
        raise InputError(f"{uri}: no model here (no config.json); models below it: {', '.join(below) or 'none'}")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != MODEL_FORMAT["format"]:
        kind = content.get("model_type") if isinstance(content, dict) else None
        said = f"a model of type {kind!r}" if kind else "no configuration of a model"
        raise InputError(
            f"{path}: not the configuration of a saved model ({said}); allowed: a folder that `sweeps train`, "
            f"`sweeps import` or a trial wrote, whose format is {MODEL_FORMAT['format']!r}"
        )
    if content.get("version") != MODEL_FORMAT["version"]:
        raise InputError(f"{path}: version {content.get('version')!r}; allowed: {MODEL_FORMAT['version']}")
    try:
        return ModelConfig.model_validate(content.get("model"))
    except ValidationError as error:
        detail = error.errors()[0]["msg"]
        raise InputError(f"{path}: not the configuration of a saved model ({detail})") from None


def _read_weights(config: ModelConfig, uri: str) -> dict[str, Tensor]:
    """The tensors of a model of that configuration; its parameters are not in memory yet."""
    path = storage.join(uri, "model.safetensors")
    try:
        weights: dict[str, Tensor] = load(storage.read_bytes(path))
    except SafetensorError as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error})") from None
    with torch.device("meta"):
        expected = dict(SparseTransformer(config).named_parameters())  # a tied unembedding once
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or extra:
        raise InputError(f"{path}: missing tensors {missing[:3]}, unknown tensors {extra[:3]}")
    for name, tensor in weights.items():
        check_tensor(tensor, expected[name].shape, f"{path}: {name}", "config.json")
    return weights


def check_tensor(tensor: Tensor, shape: torch.Size, what: str, config: str) -> None:
    """Refuse what is no plain tensor of finite real numbers, or of another shape than `config` asks for."""
    if tensor.shape != shape:
        raise InputError(f"{what} has shape {list(tensor.shape)}; {config} asks for {list(shape)}")
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or not tensor.is_floating_point():
        kind = f"{tensor.dtype}" if plain else f"{tensor.dtype}, {tensor.layout}, {tensor.device.type}"
        raise InputError(f"{what} is a tensor of {kind}; allowed: floating-point numbers, dense, in memory")
    if not tensor.isfinite().all():
        raise InputError(f"{what} has numbers that are not finite (nan, inf or -inf): that is not supported")
