"""What a model is and how it is trained: frozen configurations that check themselves when built."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

LayerSite = Literal["attn.in", "attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.act", "mlp.out"]
ResidualPoint = Literal["resid.mid", "resid.post"]
Beta = Annotated[float, Field(ge=0, lt=1)]
LAYER_SITES: tuple[LayerSite, ...] = get_args(LayerSite)


class Config(BaseModel):
    """Frozen; an unknown field is an error that names it, and so is a number that is infinite or none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Config):
    """Architecture of a `SparseTransformer` (METHOD 2). Everything else is learned."""

    vocab_size: int = Field(2048, ge=2, le=2**20, description="tokens in the vocabulary")
    context: int = Field(128, ge=2, le=2**20, description="longest sequence, in tokens")
    n_layer: int = Field(4, ge=1, le=2**12, description="transformer blocks")
    d_model: int = Field(128, ge=1, le=2**20, description="channels of the residual stream")
    d_head: int = Field(
        16, ge=1, le=2**20, description="channels per attention head; must divide d_model unless n_head is given"
    )
    n_head: int | None = Field(None, ge=1, le=2**20, description="attention heads; d_model / d_head when left out")
    d_mlp: int | None = Field(None, ge=1, le=2**22, description="neurons per MLP; 4 * d_model when left out")
    activation: Literal["gelu", "relu"] = Field("gelu", description="of the neurons, before AbsTopK")
    activation_fraction: float = Field(
        0.25, gt=0, le=1, description="share of channels AbsTopK keeps at each of `sparse_sites`; 1 turns it off"
    )
    sparse_sites: tuple[LayerSite | ResidualPoint, ...] = Field(
        LAYER_SITES,
        description="where AbsTopK acts: kinds of node site, and the residual stream after attention (resid.mid) or "
        "after the MLP (resid.post)",
    )
    residual_relu: bool = Field(False, description="ReLU on the residual stream after each sublayer, before AbsTopK")
    biases: bool = Field(True, description="in the qkv, output, up and down projections")
    norm: Literal["rms", "layer"] = Field("rms", description="RMSNorm, which leaves zero at zero, or LayerNorm")
    norm_gain: bool = Field(False, description="learned gains of the norms (they fold into the next matrix without)")
    norm_offset: bool = Field(False, description="learned offsets of LayerNorm")
    positions: Literal["none", "learned", "concatenated"] = Field(
        "none",
        description="none, or learned absolute positions: added to the embedding, or read beside the "
        "residual stream by every attn.in and mlp.in, as `d_position` channels after those of the stream",
    )
    d_position: int | None = Field(None, ge=1, description="channels of concatenated positions")
    attention_sink: bool = Field(False, description="per head, a learned logit whose value vector is zero")
    tied_embeddings: bool = Field(False, description="the unembedding is the embedding")
    initial: Literal["fan_in", "gpt2"] = Field(
        default="fan_in",
        description="standard deviation of initial matrices: 1/sqrt(inputs), and 1/sqrt(d_model) of embeddings, or "
        "GPT-2's 0.02; either way what writes to the residual stream is scaled by 1/sqrt(2 n_layer). Biases are 0",
    )
    bigram: bool = Field(True, description="dense vocab x vocab table added to the logits")

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.n_head is None and self.d_model % self.d_head:
            raise ValueError(f"d_model {self.d_model} is not divisible by d_head {self.d_head}")
        if (self.positions == "concatenated") != (self.d_position is not None):
            raise ValueError(
                f"d_position {self.d_position} with positions {self.positions}; "
                "allowed: a number with concatenated positions, and only there"
            )
        if self.norm_offset and self.norm == "rms":
            raise ValueError("norm_offset true with norm rms; allowed: only with norm layer")
        if len(set(self.sparse_sites)) < len(self.sparse_sites):
            raise ValueError(f"sparse_sites {', '.join(self.sparse_sites)}; allowed: each once")
        for site in self.sparse_sites:
            if int(self.activation_fraction * self.width(site)) < 1:
                raise ValueError(
                    f"activation_fraction {self.activation_fraction} keeps no channel of {site}, "
                    f"which has {self.width(site)}; allowed: at least {1 / self.width(site):.4g}"
                )
        return self

    @property
    def n_head_(self) -> int:
        """Attention heads, default applied."""
        return self.n_head or self.d_model // self.d_head

    @property
    def d_attn(self) -> int:
        """Channels of q, of k and of v, over all heads."""
        return self.n_head_ * self.d_head

    @property
    def d_mlp_(self) -> int:
        """Neurons per MLP, default applied."""
        return self.d_mlp or 4 * self.d_model

    def width(self, kind: str) -> int:
        """Channels at a kind of node site or point of the residual stream."""
        if kind in ("attn.in", "mlp.in"):
            return self.d_model + (self.d_position or 0)
        if kind in ("attn.q", "attn.k", "attn.v"):
            return self.d_attn
        return self.d_mlp_ if kind == "mlp.act" else self.d_model

    def survivors(self, kind: str) -> int | None:
        """k of AbsTopK at a kind of node site or point of the residual stream; None where nothing is dropped."""
        width = self.width(kind)
        k = int(self.activation_fraction * width)
        return k if kind in self.sparse_sites and k < width else None


RUN_ONLY = ("micro_batch", "compile", "cuda_graph", "log_every", "eval_every", "checkpoint_every")
"""Fields of a `TrainConfig` that decide how a run is done and reported, and not to which weights it leads."""


class TrainConfig(Config):
    """One training run (METHOD 3). Defaults are the paper's where the paper has one."""

    tokens: int = Field(2_000_000, ge=1, description="training tokens in all")
    batch_size: int = Field(16, ge=1, description="sequences per optimiser step, over all workers")
    fraction: float = Field(1.0, gt=0, le=1, description="share of each weight tensor that stays nonzero; 1 is dense")
    embedding_fraction: float | None = Field(
        None, gt=0, le=1, description="share for the two embeddings when it is to differ from `fraction`"
    )
    anneal: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of training over which L0 falls to `fraction`, from the first step on; 0: at once",
    )
    min_alive: int = Field(4, ge=0, description="nonzeros kept per neuron and per attention channel (j)")
    dense_biases: bool = Field(False, description="leave biases out of the projection")
    lr: float = Field(1.28e-2, gt=0, description="peak learning rate at the target sparsity")
    warmup: float = Field(0.01, ge=0, lt=1, description="share of training with rising learning rate")
    lr_decay: bool = Field(True, description="linear decay of the learning rate to 0")
    sharkfin: bool = Field(True, description="multiply the learning rate by 1/sqrt(L0 now / L0 target)")
    gradient: Literal["normalize", "clip", "none"] = Field(
        "normalize", description="divide the gradient by its global RMS, clip that RMS to 1, or leave it"
    )
    rms_over: Literal["all", "projected"] = Field(
        "all",
        description="whose gradients that RMS is of: all parameters, or those under a budget, so that the bigram table "
        "(most of a small model's parameters) does not count. All are scaled by it",
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="AdamW moment decays")
    eps: float = Field(0.1, gt=0, description="AdamW epsilon (the paper's is 0.1)")
    weight_decay: float = Field(0.1, ge=0, description="AdamW decay; not on the bigram table")
    decay: Literal["all", "matrices"] = Field(
        "all", description="what decays: all but the bigram table, or of those matrices and embeddings alone"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the initial weights and the data order")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of activations; weights stay float32. auto: bfloat16 on GPUs and on processors that have "
        "instructions for it, else float32; decided when a run starts, and kept when it is continued",
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="sequences per forward pass and worker, whose gradients are added up. By default all of a "
        "worker's, on a GPU as many as its memory is estimated to hold; halved when memory runs out all the same",
    )
    compile: bool = Field(False, description="compile the layers (torch.compile); on GPUs only, no effect elsewhere")
    cuda_graph: bool = Field(
        False,
        description="replay a step as one CUDA graph, which saves small models the launching of kernels; one worker on "
        "a GPU, no effect on a CPU",
    )
    eval_tokens: int = Field(65_536, ge=1, description="held-out tokens per validation")
    eval_every: int = Field(200, ge=1, description="steps between validations")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    log_every: int = Field(20, ge=1, description="steps between progress reports")

    def n_steps(self, context: int) -> int:
        """Optimiser steps, each of batch_size * context tokens."""
        return max(1, round(self.tokens / (self.batch_size * context)))


SECTIONS: dict[str, type[BaseModel]] = {"model": ModelConfig, "training": TrainConfig}
"""The parts of a run's configuration, by the names that they have in files."""
