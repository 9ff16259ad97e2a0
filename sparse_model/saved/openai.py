"""The checkpoints that the paper's authors released (METHOD 9), read into our own model and tokenizer.

A checkpoint is a folder with beeg_config.json and final_model.pt; the tokenizer is encoder.json and vocab.bpe, in the
same folder or another. Where METHOD 9 is silent, the released `gpt.py` decides, its defaults for absent keys included.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from sparse_model import storage
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.model.config import LayerSite, ModelConfig, ResidualPoint
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import MODEL_FORMAT, check_tensor
from sparse_model.storage.text import read_json, read_text

CONFIG, WEIGHTS, ENCODER, MERGES = "beeg_config.json", "final_model.pt", "encoder.json", "vocab.bpe"

SITES: dict[str, LayerSite | ResidualPoint] = {
    "attn_in": "attn.in",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_out": "attn.out",
    "mlp_in": "mlp.in",
    "mlp_neuron": "mlp.act",
    "mlp_out": "mlp.out",
    "resid_post_attn": "resid.mid",
    "resid_post_mlp": "resid.post",
}
"""Released names of the places where AbsTopK acts, and ours."""

WITHOUT_EFFECT = (
    "debug_nans",
    "dropout",
    "dropout_cat_pos_emb",
    "enable_sparse_kernels",
    "flash",
    "grad_checkpointing",
    "learnable_bigram_table",
    "sinusoidal_cat_pos_emb",
    "tokenizer_name",
)
"""Keys of the released configuration that only matter in training, or for speed."""


def load_openai(
    uri: storage.PathOrURI, tokenizer_uri: storage.PathOrURI | None = None
) -> tuple[SparseTransformer, Tokenizer | None]:
    """A released checkpoint in a folder or at an fsspec URI, and its tokenizer, None where there are no files of one.

    The model's logits equal those of the released forward pass, to rounding. `tokenizer_uri` is the tokenizer's folder
    if it is another one. Keys of beeg_config.json that mean nothing here are named in a warning. Raises InputError for
    files that are missing, truncated or of another model, naming keys and shapes that do not fit.
    """
    uri = storage.as_uri(uri)
    _refuse_other_forms(uri)
    config = _read_config(storage.join(uri, CONFIG))
    tokenizer = read_tokenizer(storage.as_uri(tokenizer_uri or uri), required=tokenizer_uri is not None)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise InputError(f"{uri}: vocab_size {config.vocab_size}; the tokenizer has {tokenizer.vocab_size} tokens")
    path = storage.join(uri, WEIGHTS)
    weights = _read_weights(path)  # before there is a model: while they are read they take their memory twice
    with torch.device("meta"):
        _check(SparseTransformer(config), weights, path)
    model = SparseTransformer(config)
    _fill(model, weights)
    return model.eval(), tokenizer


class _Released(BaseModel):
    """beeg_config.json: the released names of what decides the forward pass, and `gpt.py`'s defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = Field(12, ge=1)
    d_model: int = 768
    d_head: int | None = None
    d_mlp: int | None = Field(None, validation_alias=AliasChoices("n_mlp", "d_mlp"))
    bias: bool = True
    ln_bias: bool = True
    rms_norm: bool = False
    activation_type: Literal["gelu", "relu"] = "gelu"
    residual_activation_type: Literal["identity", "relu"] = "identity"
    afrac: float | None = None
    afrac_loctypes: str = "attn_in,attn_out,mlp_in,mlp_out"
    tied_unembed: bool = True
    enable_bigram_table: bool = False
    d_pos_emb: int | None = None
    sink: bool = False
    use_tied_aux_matrix: Literal[False, None] = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, content: dict[str, Any]) -> dict[str, Any]:
        """A key without a value means its default."""
        return {key: value for key, value in content.items() if value is not None}

    @property
    def places(self) -> set[str]:
        """Where AbsTopK acts, in released names, as they are written: the released code strips no spaces off."""
        return set(self.afrac_loctypes.split(",")) - {""}

    def problem(self) -> str | None:
        """What the released code would run with, and we do not."""
        for place in sorted(self.places - SITES.keys()):
            hint = " without spaces, which the released code does not strip" if place.strip() in SITES else ""
            return f"afrac_loctypes: {place!r}; allowed: {', '.join(SITES)}{hint}"
        if self.afrac is not None and not self.afrac >= 0:
            return f"afrac: {self.afrac}; allowed: above 0, up to 1"
        for place in sorted(self.places):
            width = self._width(place)
            if self.afrac is not None and int(self.afrac * width) < 1:
                return f"afrac: {self.afrac} keeps no channel of {place}, which has {width}: that is not supported here"
        return None

    def _width(self, place: str) -> int:
        """Channels at a place where AbsTopK acts."""
        if place in ("attn_in", "mlp_in"):
            return self.d_model + (self.d_pos_emb or 0)
        if place in ("attn_q", "attn_k", "attn_v"):
            return (self.d_head or self.d_model // self.n_head) * self.n_head
        return (self.d_mlp or 4 * self.d_model) if place == "mlp_neuron" else self.d_model

    def to_ours(self) -> ModelConfig:
        """The same model in our terms; pydantic's ValidationError for one that cannot be."""
        return ModelConfig(
            vocab_size=self.vocab_size,
            context=self.block_size,
            n_layer=self.n_layer,
            d_model=self.d_model,
            d_head=self.d_head or self.d_model // self.n_head,
            n_head=self.n_head,
            d_mlp=self.d_mlp,
            activation=self.activation_type,
            activation_fraction=self.afrac if self.afrac and self.places else 1.0,
            sparse_sites=tuple(ours for released, ours in SITES.items() if released in self.places),
            residual_relu=self.residual_activation_type == "relu",
            biases=self.bias,
            norm="rms" if self.rms_norm else "layer",
            norm_gain=True,
            norm_offset=self.ln_bias and not self.rms_norm,
            positions="learned" if self.d_pos_emb is None else "concatenated",
            d_position=self.d_pos_emb,
            attention_sink=self.sink,
            tied_embeddings=self.tied_unembed,
            bigram=self.enable_bigram_table,
        )


def _refuse_other_forms(uri: str) -> None:
    """A folder in Hugging Face form holds the same model in other files."""
    if storage.exists(storage.join(uri, CONFIG)) or not storage.exists(storage.join(uri, "config.json")):
        return
    content = read_json(storage.join(uri, "config.json"))
    ours = isinstance(content, dict) and content.get("format") == MODEL_FORMAT["format"]
    said = "a model of ours, to be used as it is" if ours else "in Hugging Face form (config.json, model.safetensors)"
    raise InputError(f"{uri}: {said}; allowed: a folder as the authors released it, with {CONFIG} and {WEIGHTS}")


def _read_config(path: str) -> ModelConfig:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: a {type(content).__name__}; allowed: a JSON object")
    try:
        released = _Released.model_validate(content)
        if problem := released.problem():
            raise InputError(f"{path}: {problem}")
        config = released.to_ours()
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {' '.join([*map(str, first['loc']), first['msg']])}") from None
    known = {*_Released.model_fields, "n_mlp", *WITHOUT_EFFECT} - {"use_tied_aux_matrix"}
    if unknown := sorted(content.keys() - known):
        warnings.warn(f"{path}: ignored keys {', '.join(unknown)}", stacklevel=3)
    return config


def _read_weights(path: str) -> dict[str, Tensor]:
    try:
        weights = torch.load(io.BytesIO(storage.read_bytes(path)), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # zip, pickle and torch each raise their own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: truncated or not a PyTorch state dict ({reason})") from None
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in weights.items()
    ):
        raise InputError(f"{path}: a {type(weights).__name__}; allowed: a plain state dict of tensors")
    # what a model with the slow attention saves beside its weights: the causal mask
    return {key: tensor for key, tensor in weights.items() if not re.fullmatch(r"transformer\.h\.\d+\.attn\.bias", key)}


def _check(model: SparseTransformer, weights: dict[str, Tensor], path: str) -> None:
    """InputError where the released tensors and the model's parameters differ in names or shapes."""
    parameters = _released_parameters(model)
    optional = {"final_logits_bias"}
    if model.config.tied_embeddings:
        optional.add("lm_head.weight")
    missing = sorted(parameters.keys() - weights.keys() - optional)
    extra = sorted(weights.keys() - parameters.keys() - optional)
    if missing or extra:
        said = [f"{what} {', '.join(keys)}" for what, keys in (("missing", missing), ("unknown", extra)) if keys]
        raise InputError(f"{path}: keys {'; '.join(said)}")
    for key, parameter in parameters.items():
        if key in weights:
            check_tensor(weights[key], parameter.shape, f"{path}: {key}", CONFIG)
    if model.config.tied_embeddings:
        _check_tied(weights, path)


@torch.no_grad()
def _fill(model: SparseTransformer, weights: dict[str, Tensor]) -> None:
    """Copy the released tensors into the model's parameters; what is lacking is zero."""
    for key, parameter in _released_parameters(model).items():
        parameter.copy_(weights.get(key, torch.zeros_like(parameter)))


def _released_parameters(model: SparseTransformer) -> dict[str, Tensor]:
    return {_released_name(name): p for name, p in model.named_parameters()}


def _check_tied(weights: dict[str, Tensor], path: str) -> None:
    embedding = weights.get("transformer.wte.weight")
    unembedding = weights.get("lm_head.weight", embedding)
    if embedding is not None and unembedding is not None and not torch.equal(embedding, unembedding):
        raise InputError(f"{path}: transformer.wte.weight and lm_head.weight differ; {CONFIG} has tied_unembed true")


TOP_LEVEL = {
    "embedding": "transformer.wte.weight",
    "positions": "transformer.wpe.weight",
    "unembedding": "lm_head.weight",
    "unembedding_bias": "final_logits_bias",
    "bigram": "bigram_table",
}
PARTS = {
    "layers": "transformer.h",
    "final_norm": "transformer.ln_f",
    "attn.norm": "ln_1",
    "attn.position_norm": "ln_p1",
    "attn.qkv": "attn.c_attn",
    "attn.out": "attn.c_proj",
    "attn.sink": "attn.attn_imp.sink_logit",
    "mlp.norm": "ln_2",
    "mlp.position_norm": "ln_p2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
    "gain": "weight",
    "offset": "bias",
}


def _released_name(name: str) -> str:
    """The key that a parameter of ours has in final_model.pt."""
    if name in TOP_LEVEL:
        return TOP_LEVEL[name]
    pattern = "|".join(map(re.escape, PARTS))
    return re.sub(rf"\b(?:{pattern})\b", lambda found: PARTS[found.group()], name)


def read_tokenizer(uri: str, required: bool) -> Tokenizer | None:
    """The tokenizer of a folder; None where neither of its files is there and none is required."""
    paths = [storage.join(uri, name) for name in (ENCODER, MERGES)]
    if not required and not any(map(storage.exists, paths)):
        return None
    return Tokenizer.from_gpt2(read_json(paths[0]), read_text(paths[1]), uri)
