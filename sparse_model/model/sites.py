"""Node sites: the places in a forward pass whose channels are the nodes of a circuit (METHOD 5 names them in order).

A site name is ``layers.<i>.<kind>`` for the eight kinds of a layer, and ``final.in`` before the unembedding.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sparse_model.model.config import LAYER_SITES, ModelConfig

FINAL_SITE = "final.in"

SiteFunction = Callable[[str, Tensor], Tensor]
"""Called with (site name, activation of shape (B, T, channels)); what it returns takes the activation's place."""


def site_name(layer: int, kind: str) -> str:
    """Name of one site, e.g. ``site_name(3, "attn.q") == "layers.3.attn.q"``."""
    assert kind in LAYER_SITES, kind
    return f"layers.{layer}.{kind}"


def site_names(config: ModelConfig) -> list[str]:
    """Every site of a model, in the order in which a forward pass reaches them."""
    layers = [site_name(layer, kind) for layer in range(config.n_layer) for kind in LAYER_SITES]
    return [*layers, FINAL_SITE]


def site_width(config: ModelConfig, name: str) -> int:
    """Number of channels (nodes) at a site."""
    return config.width(site_kind(name))


def site_kind(name: str) -> str:
    """What a site is in whichever layer, e.g. ``site_kind("layers.3.attn.q") == "attn.q"``."""
    return name if name == FINAL_SITE else name.split(".", 2)[2]
