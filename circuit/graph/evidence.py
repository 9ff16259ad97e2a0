"""What was measured of a circuit beside its losses: the figures of its proofs. None: not measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sparse_model.model.config import Config

Level = Literal["basic", "full"]
"""Which proofs: those that take a small part of a search's time, or all of them."""


class Proofs(Config):
    """Losses are two-way cross-entropies in nats on held-out pairs."""

    level: Level | None = Field(None, description="basic or full; null where the search was stopped before its proofs")
    necessity_loss: float | None = Field(None, description="with only the circuit ablated; chance is 0.693")
    necessity_calibrated_loss: float | None = Field(
        None, description="the same after a scale and a shift fitted on training pairs"
    )
    necessity_accuracy: float | None = Field(None, description="share of prompts that is then right")
    subset_draws: int = Field(0, description="random subsets of the rest that were ablated")
    subset_loss: float | None = Field(None, description="mean over them")
    subset_worst_loss: float | None = Field(None, description="in the worst of them")
    adversary_loss: float | None = Field(None, description="in the worst subset that gradient ascent finds")
    adversary_ablated: int | None = Field(None, description="parts that this subset ablates")
    nonsense_edges: tuple[int | None, ...] = Field(
        (),
        description="edges of the circuits that the same search finds for consistent nonsense; null: it finds none",
    )
    shuffled_weights_tried: bool = Field(False, description="whether the model with its weights shuffled was searched")
    shuffled_weights_edges: int | None = Field(
        None, description="edges of the circuit that the same search finds in it, if any"
    )
    agreement: float | None = Field(None, description="share of prompts decided as the whole model decides them")
    agreement_divergence: float | None = Field(
        None, description="mean KL divergence in nats of the two answers' distribution from the whole model's"
    )
    wrong_prompts: int = Field(0, description="prompts that the whole model gets wrong")
    agreement_wrong: float | None = Field(None, description="share of those decided as the whole model decides them")
    agreement_harder: float | None = Field(None, description="the same of prompts of the task's harder variant")
    divergence_harder: float | None = Field(None, description="mean KL divergence in nats on these")
    node_correlations: dict[str, float] = Field(
        default_factory=dict, description="of each kept node's values in the circuit and in the whole model, by name"
    )
    attention_overlaps: dict[str, float] = Field(
        default_factory=dict, description="of each kept head's attention in the two, by name: 1 is the same"
    )
    resample_losses: dict[float, float] = Field(
        default_factory=dict,
        description="by strength, with nodes outside at mean + strength * (value in random pretraining text - mean)",
    )
    stability: float | None = Field(
        None, description="mean overlap of kept nodes (intersection over union) between searches from other seeds"
    )
    backups: tuple[int, ...] | None = Field(
        None, description="edges of the circuits found with those before them ablated, until there is none"
    )


NO_PROOFS = Proofs.model_validate({})
"""Of a circuit of which nothing is proved."""
