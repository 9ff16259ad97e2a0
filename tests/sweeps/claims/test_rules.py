"""Every claim's rule on planted rows: where it holds, where it does not, where nothing is decided, where no row is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from claim_rows import TASKS, found, plant, plant_ablations

from circuit.search.config import SEARCH_VERSION
from sparse_model.errors import InputError
from sweeps.claims.claim import Rule
from sweeps.claims.intervals import Measured, over_pairs, over_tasks, slope_over_tasks, slope_over_trials
from sweeps.claims.table import CLAIMS

HEADLINE = ("headline-width", "headline-nonzeros", "headline-dense")
METHODS = ("node", "edge", "faithful")


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (1.1, 2.0, "holds", "does not hold"),
        (0.2, 0.9, "does not hold", "holds"),
        (0.9, 1.1, "not decided", "not decided"),
        (None, None, "not decided", "not decided"),
    ],
)
def test_a_rule_looks_at_the_whole_interval(low: float | None, high: float | None, above: str, below: str) -> None:
    measured = Measured(1.0, low, high, "planted")
    assert Rule("above", 1).judge(measured) == above
    assert Rule("below", 1).judge(measured) == below


def test_intervals_against_what_is_known() -> None:
    """Student's t of three by the table (4.303), of a straight line nothing, and none of too few."""
    found_pairs = over_pairs([1.0, 2.0, 3.0])
    assert found_pairs.value == 2
    assert found_pairs.high == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-3)
    assert over_pairs([1.0, 2.0]).low is None
    straight = slope_over_trials([1, 2, 3, 4], [2, 4, 6, 8])
    assert (straight.value, straight.low, straight.high) == pytest.approx((2, 2, 2))
    assert over_tasks([2.0, 2.0, 2.0]).low is None
    assert (over_tasks([2.0] * 4).low, over_tasks([2.0] * 4).high) == pytest.approx((2, 2))
    by_task = slope_over_tasks([0, 1, 2], [[0.0, 1, 2, 3], [0.5, 1.5, 2.5, 3.5], [1.0, 2, 3, 4]])
    assert by_task.value == pytest.approx(math.exp(0.5))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.number} {claim.name}")
def test_a_claim_without_rows_has_no_figure(claim, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    finding = found(tmp_path, claim.number, claim.name)
    assert (finding.verdict, finding.parts) == ("no rows yet", ())
    assert claim.decided_by
    assert claim.changed_by


def plant_fronts(folder: Path, ratio: float, methods: tuple[str, ...] = METHODS, gap: float = 0.0) -> None:
    """Three sparse and three dense models; edges of the dense are `ratio` times the sparse at every loss."""
    for i, loss in enumerate((2.0, 2.2, 2.4)):
        for kind, factor, shift in (("sparse", 1.0, 0.0), ("dense", ratio, gap)):
            study = "headline-dense" if kind == "dense" else HEADLINE[i % 2]
            edges = {method: factor * math.exp(-loss) * 10 for method in methods}
            size = {"flops": 10.0**i, "l0": 1000 * 2**i, "d_model": 64, "fraction": 0.1}
            plant(folder, study, f"{kind}{i}", edges=edges, kind=kind, val_loss=loss + shift, suggestion=i, **size)


def test_studies_of_several_searches_decide_nothing(tmp_path: Path) -> None:
    plant_fronts(tmp_path, 4.0)
    sizes = {"edges": {"node": 1.0}, "kind": "dense", "val_loss": 2.1}
    plant(tmp_path, "headline-dense", "later", search_version=SEARCH_VERSION + 1, **sizes)
    with pytest.raises(InputError, match="their sizes do not mix"):
        found(tmp_path, 1, "more edges")


@pytest.mark.parametrize(
    ("ratio", "fewer", "sixteen"),
    [(20.0, "holds", "holds"), (4.0, "holds", "does not hold"), (0.5, "does not hold", "does not hold")],
)
def test_edges_at_equal_loss_compute_and_nonzeros(tmp_path: Path, ratio: float, fewer: str, sixteen: str) -> None:
    plant_fronts(tmp_path, ratio)
    first = found(tmp_path, 1, "equal validation loss")
    assert first.studies == HEADLINE
    assert [part.found.value for part in first.parts] == pytest.approx([ratio] * 3, rel=1e-2)  # type: ignore[union-attr]
    assert first.verdict == fewer
    assert found(tmp_path, 1, "Sixteen").verdict == sixteen
    for name in ("equal compute", "equal nonzeros"):
        other = found(tmp_path, 1, name)
        assert [part.found.value for part in other.parts] == pytest.approx([ratio] * 3, rel=1e-2)  # type: ignore[union-attr]
        assert other.verdict == fewer


def test_fronts_that_share_no_loss_or_lack_a_method_decide_nothing(tmp_path: Path) -> None:
    plant_fronts(tmp_path / "apart", 20.0, gap=3.0)
    finding = found(tmp_path / "apart", 1, "equal validation loss")
    assert finding.verdict == "not decided"
    assert "no validation loss in common" in str(finding.parts[0].found)
    plant_fronts(tmp_path / "nodes", 20.0, methods=("node",))
    finding = found(tmp_path / "nodes", 1, "equal validation loss")
    assert [part.verdict for part in finding.parts] == ["holds", "no rows yet", "no rows yet"]
    assert finding.verdict == "not decided"


@pytest.mark.parametrize(
    ("gap", "verdicts", "words"),
    [
        (0.05, ["holds", "no rows yet", "does not hold"], ""),
        (0.3, ["holds", "no rows yet", "not decided"], "not match"),
    ],
)
def test_where_fronts_have_no_faithful_circuits_those_of_matched_models_are_taken(
    gap: float, verdicts: list[str], words: str, tmp_path: Path
) -> None:
    plant_fronts(tmp_path, 20.0, methods=("node",))
    for kind, factor, loss in (("sparse", 1.0, 2.0), ("dense", 0.5, 2.0 + gap)):
        edges = {"node": factor, "faithful": factor}
        plant(tmp_path, "headline-matched", kind, edges=edges, kind=kind, val_loss=loss)
    parts = found(tmp_path, 1, "equal validation loss").parts
    assert [part.verdict for part in parts] == verdicts
    assert parts[2].what == "faithful, of headline-matched"
    assert words in str(parts[2].found)


@pytest.mark.parametrize(
    ("ratio", "gap", "verdict"), [(8.0, 0.05, "holds"), (0.5, 0.05, "does not hold"), (8.0, 0.3, "not decided")]
)
def test_every_target_of_models_matched_in_loss(tmp_path: Path, ratio: float, gap: float, verdict: str) -> None:
    targets = (0.15, 0.5, 0.3, 0.08, 0.04, 0.02, 0.01, 0.005, 0.002)
    for kind, factor, loss in (("sparse", 1.0, 2.0), ("dense", ratio, 2.0 + gap)):
        edges = dict.fromkeys(METHODS, factor)
        plant(tmp_path, "headline-targets", kind, edges=edges, kind=kind, val_loss=loss, targets=targets)
    finding = found(tmp_path, 1, "every task loss")
    assert finding.verdict == verdict
    assert len(finding.parts) == (27 if gap < 0.1 else 1)


@pytest.mark.parametrize(
    ("loss", "growth", "verdict"),
    [
        (-0.1, 0.7, "holds"),
        (-0.1, 1.4, "does not hold"),
        (0.1, 0.7, "does not hold"),
        (0.0, 0.7, "not decided"),
    ],
)
def test_width_at_fixed_nonzeros(tmp_path: Path, loss: float, growth: float, verdict: str) -> None:
    """A model of ten times the nonzeros, as good as can be, is no part of it."""
    for i, width in enumerate((32, 64, 128)):
        for seed, noise in ((0, -0.01), (1, 0.01)):
            size = {"d_model": width, "l0": 1000 + i, "val_loss": 2 + loss * i + noise * (-1) ** i, "seed": seed}
            plant(tmp_path, "headline-width", f"w{width}-{seed}", edges={"node": growth**i}, suggestion=i, **size)
    plant(tmp_path, "headline-width", "large", edges={"node": 1e-2}, d_model=256, l0=10_000, val_loss=9.0)
    assert found(tmp_path, 2).verdict == verdict


@pytest.mark.parametrize(("loss", "growth", "verdict"), [(-0.1, 1.4, "holds"), (-0.1, 0.7, "does not hold")])
def test_nonzeros_at_fixed_width(tmp_path: Path, loss: float, growth: float, verdict: str) -> None:
    for i in range(3):
        for seed in (0, 1):
            size = {"d_model": 128, "l0": 1000 * 2**i, "val_loss": 2 + loss * i, "seed": seed}
            study = "headline-width" if i == 1 else "headline-nonzeros"
            plant(tmp_path, study, f"n{i}-{seed}", edges={"node": growth**i}, suggestion=i, **size)
    plant(tmp_path, "headline-width", "other", edges={"node": 50}, d_model=64, l0=500, val_loss=0.5)
    assert found(tmp_path, 3).verdict == verdict


@pytest.mark.parametrize(
    ("sparse", "dense", "verdict"),
    [(0.69, 0.3, "holds"), (0.69, 0.69, "not decided"), (0.3, 0.2, "does not hold"), (0.65, 0.69, "does not hold")],
)
def test_necessity(tmp_path: Path, sparse: float, dense: float, verdict: str) -> None:
    for kind, loss in (("sparse", sparse), ("dense", dense)):
        circuit = {"necessity_calibrated_loss": loss}
        plant(tmp_path, "quickstart", kind, edges={"node": 1}, kind=kind, circuit=circuit)
    assert found(tmp_path, 5).verdict == verdict


@pytest.mark.parametrize(("growth", "verdict"), [(1.5, "holds"), (0.8, "does not hold"), (1.0, "not decided")])
def test_kurtosis(tmp_path: Path, growth: float, verdict: str) -> None:
    """Over models that differ in their fraction alone: one of another learning rate is left out."""
    for i, fraction in enumerate((0.2, 0.1, 0.05)):
        for seed, noise in ((0, 1.02), (1, 0.98)):
            config = {"model": {}, "training": {"fraction": fraction, "lr": 0.1, "seed": seed}}
            size = {"fraction": fraction, "kurtosis": 5 * growth**i * noise ** (-1) ** i, "suggestion": i}
            plant(tmp_path, "ablations", f"{i}-{seed}", edges={"node": 1}, config=config, seed=seed, **size)
    config = {"model": {}, "training": {"fraction": 0.05, "lr": 0.7, "seed": 0}}
    plant(tmp_path, "ablations", "other", edges={"node": 1}, config=config, fraction=0.05, kurtosis=1e6)
    assert found(tmp_path, 6).verdict == verdict


def test_signs_of_ablations_that_are_the_papers(tmp_path: Path) -> None:
    """Unclipped gradients diverge; without sharkfin annealing is worse than none."""
    worse = {"base": 0.0, "none": math.inf, "clip": 0.3, "sharkfin": 0.6}
    plant_ablations(
        tmp_path, lambda name, seed: 2 + worse.get(name, 0.2) + 0.01 * seed + 0.003 * (seed == len(name) % 3)
    )
    finding = found(tmp_path, 8)
    by_name = {part.what: part for part in finding.parts}
    assert "3 of 3 seeds diverged" in str(by_name["gradients as they are, against clipped"].found)
    assert by_name["an attention sink"].verdict == "no rows yet"
    assert {part.what: part.verdict for part in finding.parts if part.rule is not None} == {
        part.what: "holds" for part in finding.parts if part.rule is not None
    }
    assert finding.verdict == "holds"


def test_one_sign_the_other_way_round_and_one_that_seeds_disagree_about(tmp_path: Path) -> None:
    better = {"warmup": -0.2, "base": 0.0}
    plant_ablations(tmp_path / "a", lambda name, seed: 2 + better.get(name, 0.2) + 0.003 * (seed == len(name) % 3))
    finding = found(tmp_path / "a", 8)
    assert {part.what: part.verdict for part in finding.parts}["no warm-up"] == "does not hold"
    assert finding.verdict == "does not hold"
    noisy = {"bigram": (0.4, -0.4, 0.1)}
    plant_ablations(tmp_path / "b", lambda name, seed: 2 + noisy.get(name, (0.0,) * 3)[seed])
    parts = {part.what: part.verdict for part in found(tmp_path / "b", 8).parts}
    assert parts["no bigram table"] == "not decided"


def test_two_variants_are_compared_with_each_other_and_not_with_the_base(tmp_path: Path) -> None:
    """Both are worse than the base; of the two, unclipped gradients are better, and so is annealing."""
    worse = {"clip": 1.0, "none": 0.4, "anneal": 0.9, "sharkfin": 0.3}
    plant_ablations(tmp_path, lambda name, seed: 2 + worse.get(name, 0.0) + 0.003 * (seed == len(name) % 3))
    parts = {part.what: part for part in found(tmp_path, 8).parts}
    unclipped, gain = (
        parts["gradients as they are, against clipped"],
        parts["no anneal, against anneal without sharkfin: the gain"],
    )
    assert unclipped.found.value == pytest.approx(-0.6, abs=0.01)  # type: ignore[union-attr]
    assert gain.found.value == pytest.approx(0.6, abs=0.01)  # type: ignore[union-attr]
    assert (unclipped.verdict, gain.verdict) == ("does not hold", "does not hold")


@pytest.mark.parametrize(
    ("hurt", "more", "verdict"),
    [(0.3, 2.0, "holds"), (-0.3, 2.0, "does not hold"), (0.3, 0.5, "does not hold"), (0.3, 1.0, "not decided")],
)
def test_activation_fraction(tmp_path: Path, hurt: float, more: float, verdict: str) -> None:
    plant_ablations(
        tmp_path,
        lambda name, seed: 2 + (hurt if name == "sixteenth" else 0) + 0.003 * (seed == len(name) % 3),
        lambda name: more if name == "all" else 1.0,
    )
    assert found(tmp_path, 7).verdict == verdict


@pytest.mark.parametrize(
    ("nonsense", "shuffled", "verdict"),
    [(9000.0, None, "holds"), (None, 9000, "holds"), (1000.0, None, "does not hold"), (None, 1000, "does not hold")],
)
def test_controls(tmp_path: Path, nonsense: float | None, shuffled: int | None, verdict: str) -> None:
    """Dense circuits, and those without full proofs, have no say."""
    circuit = {"proofs": "full", "nonsense_edges": nonsense, "shuffled_weights_edges": shuffled}
    plant(tmp_path, "headline-matched", "sparse", edges={"node": 1}, circuit=circuit)
    bad = {"nonsense_edges": 1.0, "shuffled_weights_edges": 1}
    plant(tmp_path, "headline-matched", "dense", edges={"node": 1}, circuit=bad | {"proofs": "full"}, kind="dense")
    plant(tmp_path, "headline-matched", "basic", edges={"node": 1}, circuit=bad | {"proofs": "basic"})
    assert found(tmp_path, 9).verdict == verdict


@pytest.mark.parametrize(
    ("sparse", "dense", "tasks", "verdict"),
    [
        (1.3, 5.0, 5, "holds"),
        (5.0, 1.3, 5, "does not hold"),
        (2.0, 2.0, 5, "not decided"),
        (1.3, 5.0, 2, "not decided"),
    ],
)
def test_price_of_faithfulness(tmp_path: Path, sparse: float, dense: float, tasks: int, verdict: str) -> None:
    for kind, price in (("sparse", sparse), ("dense", dense)):
        edges = {"node": 1.0, "faithful": price}
        plant(tmp_path, "quickstart", kind, edges=edges, kind=kind, tasks=TASKS[:tasks])
    finding = found(tmp_path, 10)
    assert finding.parts[0].found.value == pytest.approx(dense / sparse, rel=1e-2)  # type: ignore[union-attr]
    assert finding.verdict == verdict


@pytest.mark.parametrize(
    ("times", "verdict"), [((4.0, 3.0, 2.0), "holds"), ((4.0, 3.0, 0.5), "does not hold"), ((4.0,), "not decided")]
)
def test_learned_masks_against_baselines(tmp_path: Path, times: tuple[float, ...], verdict: str) -> None:
    import pandas as pd

    plant(tmp_path, "quickstart", "sparse", edges={"node": 1})
    ways = ("attribution", "integrated", "edge attribution", "random")
    rows = [
        {"model": "m", "task": task, "target_loss": 0.15, "way": way, "edges": edges}
        for i, task in enumerate(TASKS)
        for way, edges in [("learned + eliminated", 100 + i), *zip(ways, (100 * t + i for t in times), strict=False)]
    ]
    rows.append({"model": "m", "task": TASKS[0], "target_loss": 0.5, "way": "attribution", "edges": 1})
    pd.DataFrame(rows).to_parquet(tmp_path / "quickstart" / "baselines.parquet")
    assert found(tmp_path, 4).verdict == verdict
