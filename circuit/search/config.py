"""How circuits are searched for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sparse_model.model.config import Config

Method = Literal["node", "edge", "faithful"]
"""What is pruned: nodes; edges as well; or nodes, by a circuit that holds whatever subset of the rest is ablated."""

METHODS: tuple[Method, ...] = ("node", "edge", "faithful")


SEARCH_VERSION = 5
"""Raised when the search comes to find other circuits, so that sizes from before are not taken for its."""


class PruneConfig(Config):
    """Search of one circuit (METHOD 6).

    Defaults are the paper's search centres, but for k_coef and lr: ten times theirs, as steps are ten times fewer.
    """

    target_loss: float = Field(0.15, gt=0, description="calibrated task loss a circuit must reach, in nats")
    solved_loss: float | None = Field(
        None,
        gt=0,
        description="loss of the whole model on held-out pairs, its logits as they are, above which a task is "
        "unsolved, in nats, whatever the target of a circuit; default: target_loss",
    )
    max_scale: float | None = Field(
        None, gt=0, description="what a circuit's calibration may multiply logits by at the most; default: no bound"
    )
    pairs: int = Field(
        256,
        ge=1,
        description="prompt pairs a task is searched on, and as many held out; with 64 circuits fit these pairs and "
        "lose two to three times the target on others",
    )
    ablation: Literal["all", "subsets"] = Field(
        "all",
        description="what a circuit must hold against: all other nodes ablated at once; or subsets: any of them as "
        "well, and none (studies then also look for circuits by method faithful)",
    )
    faithful_tasks: tuple[str, ...] | None = Field(
        None, description="names of the tasks of which studies look for circuits by method faithful; default: all"
    )
    steps: int = Field(200, ge=1, description="optimiser steps of mask learning")
    batch_pairs: int = Field(8, ge=1, description="prompt pairs per step; all of them if there are fewer")
    k_coef: float = Field(
        1e-3,
        gt=0,
        description="nats one kept node must be worth, at the least; below a target of 0.15 it is lower by the square "
        "root of the targets' ratio",
    )
    steer: float = Field(
        0.05, ge=0, description="speed at which that price rises while the loss is below the target; 0: never"
    )
    edge_price: float = Field(
        0.9, ge=0, le=1, description="share of a node's price that goes by its edges; 0: all nodes cost the same"
    )
    init_bias: float = Field(0.1, gt=0, le=1, description="mask parameter every node starts at")
    init_noise: float = Field(1e-2, ge=0, description="standard deviation around init_bias")
    lr: float = Field(3e-2, gt=0, description="peak learning rate of the masks")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps with rising learning rate")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW second moment decay")
    weight_decay: float = Field(1e-3, ge=0, description="AdamW decay")
    temperature: float = Field(1.0, gt=0, description="of the sigmoid whose derivative the backward pass uses")
    retire: float = Field(
        0.05, gt=0, le=1, description="a node whose mask parameter is below minus this, and falling, never returns"
    )
    restarts: int = Field(
        1,
        ge=1,
        description="searches from different seeds; the smallest circuit found in one of them, or in two together, "
        "is kept",
    )
    tuning_trials: int = Field(
        0,
        ge=0,
        description="further searches with k_coef, lr and others picked by Optuna around the values here; the smallest "
        "circuit of all, or of two together, is kept",
    )
    stability: int = Field(
        0, ge=0, description="further searches from other seeds, whose kept nodes are compared; they cost as much again"
    )
    tie_qk: bool = Field(False, description="learn one mask for channel i of attn.q and of attn.k in place of two")
    eliminate: bool = Field(
        True, description="after bisection, remove every node, and for method edge every edge, that can be spared"
    )
    edges: bool = Field(True, description="whether studies also look for circuits by method edge")
    seed: int = Field(0, ge=0, lt=2**64, description="of the initial noise, the batches, subsets and controls")

    def methods(self, task: str) -> tuple[Method, ...]:
        """By which methods a study looks for circuits of a task."""
        faithful = self.ablation == "subsets" and (self.faithful_tasks is None or task in self.faithful_tasks)
        asked = {"node": True, "edge": self.edges, "faithful": faithful}
        return tuple(method for method in METHODS if asked[method])

    def against(self, ablation: Literal["all", "subsets"]) -> PruneConfig:
        """The same search for circuits that hold against another ablation."""
        return self.model_copy(update={"ablation": ablation})
