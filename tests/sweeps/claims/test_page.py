"""docs/results.md holds what the landed rows say: every figure between its markers is computed anew."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from claim_rows import plant, plant_ablations

from sparse_model.errors import InputError
from sweeps.claims import Landed, land_study, written_page
from sweeps.claims.fronts import task_edges
from sweeps.claims.pictures import curve_of_kinds, draw_pictures
from sweeps.claims.table import HEADLINE
from sweeps.claims.tables import MARKED
from sweeps.frontier.queries import Frontier
from sweeps.study.study import load_study

ROOT = Path(__file__).parents[3]
DATA, PAGE = ROOT / "docs" / "data", ROOT / "docs" / "results.md"


@pytest.fixture(scope="module")
def anew() -> str:
    """The page, written from the rows."""
    return written_page(PAGE.read_text(encoding="utf-8"), Landed(str(DATA)))


def test_every_figure_of_the_page_is_of_the_rows(anew: str) -> None:
    """`make results` mends it."""
    assert PAGE.read_text(encoding="utf-8").splitlines() == anew.splitlines()
    asked = {found[2].split()[0] for found in MARKED.finditer(anew)}
    assert {"claims", "rules", "studies", "models", "ablations", "parts"} <= asked


def test_a_changed_figure_is_written_over(anew: str) -> None:
    spoiled = re.sub(r"\| dense, width 32 \| 0 \| [\d,]+ \| [\d.]+", "| dense, width 32 | 0 | 1 | 0.001", anew)
    assert spoiled != anew
    assert written_page(spoiled, Landed(str(DATA))) == anew


def test_prose_is_left_alone_and_unknown_tables_are_refused(tmp_path: Path) -> None:
    assert written_page("all 5 by hand\n", Landed(str(tmp_path))) == "all 5 by hand\n"
    with pytest.raises(InputError, match="rows: sizes; allowed: claims"):
        written_page("<!-- rows: sizes -->\n<!-- end of rows -->", Landed(str(tmp_path)))
    assert "No rows yet." in written_page("<!-- rows: ablations -->\n<!-- end of rows -->", Landed(str(tmp_path)))


def test_a_study_lands_as_one_file_a_table_and_says_nothing_of_where_it_lay(tmp_path: Path) -> None:
    root = tmp_path / "results" / "quickstart"
    for key in ("b", "a"):
        plant(tmp_path / "results", "quickstart", key, edges={"node": 1, "edge": 0.5}, l0=7)
    (root / "study.yaml").write_text(load_study("quickstart", str(tmp_path / "results")).to_yaml())
    landed = tmp_path / "data"
    files = land_study(str(root), str(landed))
    assert sorted(Path(file).relative_to(landed).as_posix() for file in files) == [
        "quickstart/frontier/circuits/rows.parquet",
        "quickstart/frontier/trials/rows.parquet",
        "quickstart/study.yaml",
    ]
    assert str(tmp_path) not in (landed / "quickstart" / "study.yaml").read_text()
    before, after = Frontier(str(root)), Frontier(str(landed / "quickstart"))
    assert after.trials().to_pylist() == before.trials().to_pylist()
    key = ("trial", "task", "method")
    rows = [sorted(f.circuits().to_pylist(), key=lambda row: [row[k] for k in key]) for f in (before, after)]
    assert rows[0] == rows[1]
    once = {file: Path(file).read_bytes() for file in files}
    land_study(str(root), str(landed))
    assert {file: Path(file).read_bytes() for file in files} == once


@pytest.mark.parametrize("study", sorted(path.name for path in DATA.iterdir()))
def test_landed_rows_are_small_and_name_no_machine(study: str) -> None:
    files = [path for path in (DATA / study).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    text = (DATA / study / "study.yaml").read_text()
    text += " ".join(str(pq.read_table(path).to_pylist()) for path in files if path.suffix == ".parquet")
    assert not re.findall(r"(?:/home|/root|/work|/tmp|/Users)/\S*", text)


def test_the_command_lands_and_shows_and_refuses(tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "benchmarks" / "results.py"), "--data", str(tmp_path), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    nowhere = run("--land", str(tmp_path / "nowhere"), "--claim", "5")
    assert nowhere.returncode == 2
    assert nowhere.stderr.startswith(f"results: {tmp_path}/nowhere: no study here")
    shown = run("--land", str(DATA / "quickstart"), "--claim", "5")
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "quickstart" / "study.yaml").exists()
    assert "5. Circuits are necessary, calibrated: " in shown.stdout
    assert "tasks · above 0.623832: " in shown.stdout


def test_pictures_are_drawn_of_what_is_there(tmp_path: Path) -> None:
    assert draw_pictures(Landed(str(tmp_path)), tmp_path) == []
    drawn = draw_pictures(Landed(str(DATA)), tmp_path)
    assert [path.name for path in drawn] == ["headline.png", "ablations.png", "targets.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_ablations_as_a_table(tmp_path: Path) -> None:
    worse = {"warmup": 0.2, "none": math.inf}
    plant_ablations(tmp_path, lambda name, seed: 2 + worse.get(name, 0.0), lambda name: 3 if name == "all" else 1)
    page = written_page("<!-- rows: ablations -->\n<!-- end of rows -->", Landed(str(tmp_path)))
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines()}
    assert lines["the base"].startswith("| the base | 2.000 | – | – | 5.0 | 0.10 |")
    assert "| 2.200 | +0.200 (+0.200 to +0.200), 3 seeds | 1.00 × (1.00 × to 1.00 ×), 5 tasks |" in lines["no warm-up"]
    assert "| – | 3 of 3 seeds diverged |" in lines["gradients as they are"]
    assert "3.00 × (3.00 × to 3.00 ×), 5 tasks" in lines["AbsTopK keeps all"]
    assert "| no rows yet | no rows yet |" in lines["4 alive"]


@pytest.mark.parametrize("study", ["headline-matched", "headline-targets"])
def test_matched_models_have_the_tasks_that_half_of_the_other_models_do(study: str) -> None:
    made = [row for row in Landed(str(DATA)).circuits(HEADLINE) if row["method"] == "node"]
    counted = {task: [row["counted"] for row in made if row["task"] == task] for task in {row["task"] for row in made}}
    assert set(load_study(study).tasks) == {task for task, of in counted.items() if 2 * sum(of) >= len(of)}


def planted_targets(folder: Path, val_loss: Mapping[str, float] | None = None, **circuit: float | None) -> Landed:
    """Dense circuits of three times the edges at two losses, with full proofs."""
    proofs: dict[str, object] = {
        "proofs": "full",
        "nonsense_found": 3,
        "nonsense_edges": 4000.0,
        "shuffled_weights_edges": None,
    }
    proofs |= {"backups": 1, "subset_loss": 0.1, "subset_worst_loss": 0.5, "adversary_loss": 7.0}
    for kind, n in (("sparse", 1), ("dense", 3)):
        row: dict[str, Any] = {"kind": kind, "circuit": proofs | circuit, "targets": (0.15, 0.01)}
        row |= {"val_loss": (val_loss or {}).get(kind, 2.0)}
        plant(folder, "headline-targets", kind, edges={"node": n, "faithful": 2 * n}, **row)
    return Landed(str(folder))


def test_targets_and_proofs_as_tables_and_a_picture(tmp_path: Path) -> None:
    landed = planted_targets(tmp_path)
    page = "<!-- rows: {} headline-targets -->\n<!-- end of rows -->"
    lines = written_page(page.format("targets"), landed).splitlines()
    assert "| node: sparse | node: dense | node: ratio | faithful: sparse |" in lines[1]
    assert "| 0.01 | 997 | 2,992 | 3.00 × (3.00 × to 3.00 ×), 5 tasks | 1,995 | 5,985 | 3.00 ×" in "\n".join(lines)
    assert "| 0.5 | – | – | – | – | – | – |" in lines
    told = written_page(page.format("proofs"), landed)
    assert "| sparse, node | 5 | 997 | 3.0 of 5 | 4.0 ×, of 5 | 0 of 5 | 5 of 5 | 0.10 | 0.50 | 7.00 |" in told
    assert "| dense, faithful | 5 | 5,985 | 3.0 of 5 | 0.7 ×, of 5 | 0 of 5 | 5 of 5 |" in told
    assert [path.name for path in draw_pictures(landed, tmp_path)] == ["targets.png"]
    (strict,) = [point for point in curve_of_kinds(landed, ["headline-targets"], "node") if point.target == 0.01]
    assert (strict.tasks, round(strict.ratio[0], 3)) == (5, 3.0)


def test_models_that_are_not_matched_and_proofs_that_were_not_made(tmp_path: Path) -> None:
    landed = planted_targets(tmp_path, val_loss={"sparse": 2.0, "dense": 2.2}, adversary_loss=None, nonsense_found=None)
    page = "<!-- rows: {} headline-targets -->\n<!-- end of rows -->"
    assert "validation losses are not matched: sparse 2.000, dense 2.200" in written_page(
        page.format("targets"), landed
    )
    told = written_page(page.format("proofs"), landed)
    assert "| sparse, node | 5 | 997 | – | 4.0 ×, of 5 | – | 5 of 5 | 0.10 | 0.50 | – |" in told
    assert draw_pictures(landed, tmp_path) == []


def test_a_circuit_of_one_model_in_two_studies_counts_once(tmp_path: Path) -> None:
    for study in ("headline-targets", "headline-faithful"):
        plant(tmp_path, study, "t00000-same", edges={"node": 1})
    plant(tmp_path, "headline-targets", "t00000-other", edges={"node": 2})
    edges = task_edges(Landed(str(tmp_path)), ["headline-targets", "headline-faithful"])
    assert {len(logs) for logs in edges["sparse", "node", 0.15].values()} == {2}
