"""What is measured of a model on held-out tokens: loss, dead neurons, kurtosis of the residual stream, activity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from sparse_model.distributed.workers import summed
from sparse_model.model.config import LAYER_SITES, ModelConfig
from sparse_model.model.inputs import check_tokens
from sparse_model.model.loss import next_token_loss
from sparse_model.model.sites import FINAL_SITE, site_kind
from sparse_model.model.transformer import SparseTransformer

SITE_KINDS: tuple[str, ...] = (*LAYER_SITES, FINAL_SITE)


@torch.no_grad()
def evaluate(model: SparseTransformer, batches: Iterable[Tensor]) -> dict[str, float]:
    """Mean over all tokens of batches (B, T + 1): `val_loss` (nats), `dead_neurons` (share never active), `kurtosis`.

    Kurtosis is that of the channels of the final residual stream, normed, averaged over positions (3 for a Gaussian).
    `active` is the share of activations that are not zero, over all node sites, and `active.<kind>` over the sites of
    one kind (METHOD 2), e.g. `active.mlp.act`. With several workers each brings its own batches and all get the figures
    over all of them.
    """
    watch = _Watch(model.config, model.embedding.device)
    loss = torch.zeros((), dtype=torch.float64, device=model.embedding.device)
    for batch, counts in _in_step(batches, loss.device):
        check_tokens(batch, model.config, longest=model.config.context + 1)
        logits = model(batch[:, :-1], watch if counts else None)
        if counts:
            loss += next_token_loss(logits, batch[:, 1:], reduction="sum")
    watch.sums[0] = loss
    loss_sum, kurtosis_sum, n_tokens, *nonzeros = summed(watch.sums).tolist()
    if dist.is_initialized():
        dist.all_reduce(watch.alive, op=dist.ReduceOp.MAX)
    return {
        "val_loss": loss_sum / n_tokens,
        "kurtosis": kurtosis_sum / n_tokens,
        "dead_neurons": 1 - float(watch.alive.float().mean()),
        **_activity(model.config, dict(zip(SITE_KINDS, nonzeros, strict=True)), n_tokens),
    }


def _activity(config: ModelConfig, nonzeros: dict[str, float], n_tokens: float) -> dict[str, float]:
    """Shares of nonzero activations, from their number at all sites of each kind."""
    sites = {kind: n_tokens * config.width(kind) * (1 if kind == FINAL_SITE else config.n_layer) for kind in SITE_KINDS}
    shares = {f"active.{kind}": nonzeros[kind] / sites[kind] for kind in SITE_KINDS}
    return {"active": sum(nonzeros.values()) / sum(sites.values()), **shares}


def _in_step(batches: Iterable[Tensor], device: torch.device) -> Iterator[tuple[Tensor, bool]]:
    """Batches, and whether they count: a sharded model needs all workers in every forward pass.

    So a worker that has run out of batches passes idle tokens till all have.
    """
    idle = torch.zeros(1, 2, dtype=torch.long, device=device)
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        if not summed(torch.tensor(int(batch is not None), device=device)):
            return
        yield (idle, False) if batch is None else (batch, True)


class _Watch:
    """A site function that counts what is active and looks at the final residual stream while they pass."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.alive = torch.zeros(config.n_layer, config.d_mlp_, dtype=torch.uint8, device=device)
        # loss, kurtosis, tokens, and nonzero activations by kind of site
        self.sums = torch.zeros(3 + len(SITE_KINDS), dtype=torch.float64, device=device)

    def __call__(self, name: str, x: Tensor) -> Tensor:
        kind = site_kind(name)
        active = (x != 0).flatten(0, -2).sum(0)
        self.sums[3 + SITE_KINDS.index(kind)] += active.sum()
        if kind == "mlp.act":
            self.alive[int(name.split(".")[1])] |= active > 0
        elif kind == FINAL_SITE:
            z = x.float() - x.float().mean(-1, keepdim=True)
            self.sums[1] += ((z**4).mean(-1) / (z**2).mean(-1).square().clamp_min(1e-30)).sum()
            self.sums[2] += z[..., 0].numel()
        return x


def flops_per_token(config: ModelConfig) -> float:
    """Training FLOPs per token as if dense: 6 per matrix weight, and 12 * n_layer * d_attn * context for attention."""
    attention = (3 * config.width("attn.in") + config.d_model) * config.d_attn
    mlp = (config.width("mlp.in") + config.d_model) * config.d_mlp_
    matrices = config.n_layer * (attention + mlp) + config.vocab_size * config.d_model
    return 6.0 * matrices + 12.0 * config.n_layer * config.d_attn * config.context
