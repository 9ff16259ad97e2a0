"""The paper's claims as data, written before the runs that decide them. Each is computed from rows alone."""

from __future__ import annotations

from functools import partial

from sweeps.claims.ablation import ablation_signs, best_activation_fraction
from sweeps.claims.claim import Claim
from sweeps.claims.fronts import MATCHED_PART, at_equal, at_equal_loss, at_every_target
from sweeps.claims.proven import controls, learned_against_baselines, necessity_calibrated, price_of_faithfulness
from sweeps.claims.trends import kurtosis_by_sparsity, nonzeros_at_fixed_width, width_at_fixed_nonzeros

HEADLINE = ("headline-width", "headline-nonzeros", "headline-dense")
WITHOUT_NONZEROS = ("headline-width", "headline-dense")
FAITHFUL_PART, DEMO = ("headline-faithful",), ("quickstart",)
TARGETS_PART = ("headline-targets",)
FRONTS = (HEADLINE, WITHOUT_NONZEROS, DEMO)
"""Groups of studies that hold sparse and dense models side by side."""

CLAIMS = (
    Claim(
        1,
        "At equal validation loss a dense model's circuits have more edges",
        "more, everywhere",
        "dense edges over sparse ones, mean over the fronts' common losses at 0.15 nats, by nodes, by edges and "
        "faithful (of models matched in loss, where fronts have none): each interval above 1",
        "fronts that share a wider range of losses; tasks on which both kinds have circuits",
        FRONTS,
        partial(at_equal_loss, 1.0),
    ),
    Claim(
        1,
        "Sixteen times as many",
        "about 16 ×",
        "the same figures: each interval above 16",
        "larger and sparser models, whose ratio grows in the paper",
        FRONTS,
        partial(at_equal_loss, 16.0),
    ),
    Claim(
        1,
        "At every task loss",
        "about 16 ×, from 0.5 to 0.002 nats",
        "of models matched in loss to 0.1 nats, the same ratio over common tasks at nine losses and by three methods: "
        "each interval above 1",
        "tasks that reach the strict losses: where fewer than four do, nothing is decided",
        (TARGETS_PART + FAITHFUL_PART, TARGETS_PART),
        partial(at_every_target, 1.0),
    ),
    Claim(
        1,
        "At equal compute",
        "none; sparse training costs 100 to 1000 times a dense model's",
        "the same ratio over the kinds' common range of training FLOPs, counted as if dense: each interval above 1",
        "dense models trained as long as they improve; faithful circuits of all models",
        FRONTS,
        partial(at_equal, "flops"),
    ),
    Claim(
        1,
        "At equal nonzeros",
        "none",
        "the same ratio over the kinds' common range of nonzeros: each interval above 1",
        "narrower dense models that still solve tasks; faithful circuits of all models",
        FRONTS,
        partial(at_equal, "l0"),
    ),
    Claim(
        2,
        "Width at fixed nonzeros improves loss and circuits together",
        "both improve",
        "for each doubling of width: the change of loss below 0, and the factor of edges below 1",
        "rates tuned for each width; more tokens for the widest",
        (("headline-width",),),
        width_at_fixed_nonzeros,
    ),
    Claim(
        3,
        "Nonzeros at fixed width move along the frontier",
        "loss falls, circuits grow",
        "for each doubling of nonzeros: the change of loss below 0, and the factor of edges above 1",
        "a wider range of nonzeros",
        (("headline-width", "headline-nonzeros"), ("headline-nonzeros",)),
        nonzeros_at_fixed_width,
    ),
    Claim(
        4,
        "Learned masks find smaller circuits than attribution",
        "far smaller at every loss",
        "edges of node attribution, integrated gradients and edge attribution over those of learned masks at 0.15 "
        "nats: each interval above 1",
        "elimination after attribution, which the baselines have none of",
        (MATCHED_PART, DEMO),
        learned_against_baselines,
    ),
    Claim(
        5,
        "Circuits are necessary, calibrated",
        "the loss is ruined without them (not calibrated)",
        "loss with only the circuit ablated, after a scale and a shift are fitted: of sparse models above 0.624 (nine "
        "tenths of guessing), and above that of dense ones",
        "backups: circuits found with the first ablated",
        FRONTS,
        necessity_calibrated,
    ),
    Claim(
        6,
        "The residual stream's kurtosis grows with sparsity",
        "grows",
        "factor of the kurtosis for each halving of the fraction, all else equal: above 1",
        "longer training, at whose end the budgets have settled",
        (("headline-nonzeros",), ("ablations",)),
        kurtosis_by_sparsity,
    ),
    Claim(
        7,
        "An activation fraction near 1/4 is best",
        "helps to a point (near 1/4), then hurts",
        "loss at 1/16 less that at 1/4 above 0, and edges without AbsTopK over those at 1/4 above 1",
        "larger models, of which a sixteenth is more channels",
        (("ablations",),),
        best_activation_fraction,
    ),
    Claim(
        8,
        "The recipe's parts have the signs the paper gives",
        "unclipped training is unstable; annealing gains nothing without sharkfin; warm-up, anneal and bigrams help",
        "each difference in loss, paired by seed, on the paper's side of 0 (the gain without sharkfin: below 0.02)",
        "a rate tuned for every variant; more seeds; longer runs",
        (("ablations",),),
        ablation_signs,
    ),
    Claim(
        9,
        "Controls: neither nonsense nor shuffled weights have such circuits",
        "none reported for consistent nonsense",
        "share of tasks, of sparse models, whose circuit for nonsense or in shuffled weights is missing or twice as "
        "large: each interval above 0.5",
        "stricter proofs asked for while searching",
        (MATCHED_PART,),
        controls,
    ),
    Claim(
        10,
        "Faithfulness costs dense models more",
        "none",
        "edges of faithful circuits over those of plain ones, of the same models and tasks: dense price over sparse "
        "price above 1",
        "tasks: below four of them there is no interval",
        (FAITHFUL_PART, MATCHED_PART, DEMO),
        price_of_faithfulness,
    ),
)
"""The ten claims of the headline; the first has five forms."""
