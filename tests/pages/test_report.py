"""Study reports: their data, and in a real browser with no network."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pages.conftest import Open
from pages.rows import study
from sparse_model.errors import InputError
from sweeps.frontier.queries import Frontier
from sweeps.pages.report import rendered, write_report
from sweeps.pages.report_data import report_data


def floats(packed: dict[str, str]) -> Any:
    return np.frombuffer(base64.b64decode(packed["f4"]), "<f4")


def said(view: Any, place: str, words: str) -> None:
    """Wait for words: panels are drawn with the browser's next picture.

    Not by `wait_for_function`: its second look is an `eval` in the page, which the page's policy forbids.
    """
    pytest.importorskip("playwright.sync_api").expect(view.locator(place)).to_contain_text(words)


def gone(view: Any, places: str, words: str) -> None:
    """Wait until none of the places says the words."""
    pytest.importorskip("playwright.sync_api").expect(view.locator(places).filter(has_text=words)).to_have_count(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    return study(tmp_path_factory.mktemp("study") / "made", 40, 4)


@pytest.fixture(scope="module")
def page(made: str) -> str:
    return Path(write_report([made], draw="none").address).read_text()


def test_a_report_holds_the_frontiers_rows(made: str) -> None:
    data, frontier = report_data([made], {}), Frontier(made)
    rows = frontier.trials().to_pylist()
    assert data["trials"]["trial"] == [row["trial"] for row in rows]
    losses = [np.nan if row["val_loss"] is None else row["val_loss"] for row in rows]
    assert np.allclose(floats(data["trials"]["val_loss"]), losses, equal_nan=True)
    (method,) = data["methods"]
    assert [rows[i]["trial"] for i in method["front"]] == sorted(frontier.pareto()["trial"].to_pylist())
    cells = np.frombuffer(base64.b64decode(method["cells"]["u2"]), "<u2").reshape(40, 4)
    for row in frontier.circuits().to_pylist():
        i = data["trials"]["trial"].index(row["trial"])
        assert cells[i, method["tasks"].index(row["task"])] == row["edges"]
    assert (cells == 65535).sum() == 4 * sum(row["status"] == "failed" for row in rows)


def test_parameters_that_a_trial_has_not_are_none(made: str) -> None:
    data = report_data([made], {})
    (fraction,) = (axis for axis in data["axes"] if axis["name"] == "training.fraction")
    kinds = [
        data["trials"]["kind"]["words"][i] for i in np.frombuffer(base64.b64decode(data["trials"]["kind"]["u2"]), "<u2")
    ]
    assert [kind == "dense" for kind in kinds] == np.isnan(floats(fraction)).tolist()


def test_two_studies_in_one_report(made: str, tmp_path: Path) -> None:
    other = study(tmp_path / "other", 5, 4, seed=1)
    twin = study(tmp_path / "twin", 40, 4)
    with pytest.raises(InputError, match="several"):
        report_data([made, twin], {})
    data = report_data([made, other], {})
    assert data["trials"]["n"] == 45
    assert "of several studies" in data["importances"]["why"]


def test_nothing_there_is_an_error_and_a_study_that_has_not_begun_is_not(
    tmp_path: Path, study_text: Callable[..., str], opened: Open
) -> None:
    with pytest.raises(InputError, match="no frontier here"):
        write_report([str(tmp_path / "nowhere")])
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "study.yaml").write_text(study_text())
    view = opened(Path(write_report([str(tmp_path / "tiny")]).address))
    assert "No circuits were looked for." in view.locator("#tasks").inner_text()
    assert "name: tiny" in view.locator(".file").text_content()


def test_one_trial(tmp_path: Path, opened: Open) -> None:
    view = opened(Path(write_report([study(tmp_path / "one", 1, 2)], draw="none").address))
    assert view.locator("#tasks tbody tr").count() == 1
    assert "On the front (1)" in view.locator("#chosen").inner_text()


def test_hover_click_filter_back_and_forth(page: str, opened: Open) -> None:
    view = opened(page)
    view.locator("#frontier").focus()
    view.keyboard.press("ArrowRight")
    words = view.locator("#tip").inner_text()
    assert "proofs passed: sufficiency" in words
    assert "95% interval" in words
    view.keyboard.press("Enter")
    said(view, "#chosen", "Chosen (1)")
    assert "trials=t" in view.evaluate("location.href")
    view.go_back()
    said(view, "#chosen", "On the front")
    view.go_forward()
    said(view, "#chosen", "Chosen (1)")
    view.locator('select[aria-label="Kind"]').select_option("dense")
    gone(view, "#tasks tbody tr small", "sparse")
    kinds = {text.strip() for text in view.locator("#tasks tbody tr small").all_inner_texts()}
    assert kinds == {"dense"}
    assert "kinds=dense" in view.evaluate("location.href")
    again = opened(page, view.evaluate("location.hash"))
    assert {text.strip() for text in again.locator("#tasks tbody tr small").all_inner_texts()} == {"dense"}
    marked = view.locator("#tip")
    box = view.locator("#frontier").bounding_box()
    hovered = False
    for x in range(60, int(box["width"]), 4):  # somewhere over the canvas a point says what it is
        view.mouse.move(box["x"] + x, box["y"] + box["height"] / 2)
        hovered = hovered or marked.is_visible()
    assert hovered


def test_dragging_along_an_axis_filters(page: str, opened: Open) -> None:
    view = opened(page)
    view.locator("#parallel").scroll_into_view_if_needed()
    view.wait_for_selector("#parallel[data-drawn]")  # it is drawn when it has come into sight
    box = view.locator("#parallel").bounding_box()
    right = box["x"] + box["width"] - 46
    view.mouse.move(right, box["y"] + 60)
    view.mouse.down()
    view.mouse.move(right, box["y"] + 200)
    view.mouse.up()
    assert "range=edges" in view.evaluate("location.href")
    button = view.locator("#ranges button")
    assert button.inner_text().startswith("edges ")
    button.click()
    assert "range=" not in view.evaluate("location.href")


def test_csv_of_what_is_filtered(page: str, opened: Open, tmp_path: Path) -> None:
    view = opened(page, "#kinds=sparse")
    with view.expect_download() as download:
        view.locator("#csv").click()
    download.value.save_as(tmp_path / "trials.csv")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert rows
    assert {row["kind"] for row in rows} == {"sparse"}
    assert float(rows[0]["val_loss"]) > 1


def test_hostile_reasons_stay_text(page: str, opened: Open) -> None:
    view = opened(page, "#text=</script>&range=edges:NaN:x&trials=nobody&method=none&sort=evil")
    view.evaluate("location.hash = ''")
    failed = opened(page).locator("#failed").inner_text()
    assert "<img src=x onerror=hacked=1>" in failed
    assert view.locator("img").count() == 0
    assert view.evaluate("window.hacked") is None
    assert "\u202e" not in page


def test_cells_link_to_pages_or_name_the_command(made: str, opened: Open) -> None:
    data = report_data([made], {}) | {"out": f"{made}/report"}
    key, task = data["trials"]["trial"][0], data["methods"][0]["tasks"][0]
    data["pages"] = {f"circuits/{key}/{task}.html": ""}
    view = opened(rendered(data))
    assert view.locator("#tasks a").get_attribute("href") == f"circuits/{key}/{task}.html"
    view.locator("#tasks td.cell button").first.click()
    command = view.locator(".command").inner_text()
    assert command.startswith(f"sweeps circuit page {made}/circuits/t")
    assert "--model" in command


def test_narrow_and_dark(page: str, opened: Open) -> None:
    view = opened(page, color_scheme="dark", viewport={"width": 390, "height": 800})
    assert view.evaluate("document.documentElement.scrollWidth") <= 390


def test_of_ten_thousand_trials_the_first_rows_are_drawn_and_more_when_asked_for(tmp_path: Path, opened: Open) -> None:
    content = rendered(report_data([study(tmp_path / "large", 10_000, 20)], {}) | {"out": "report"})
    assert len(content.encode()) < 15_000_000
    (tmp_path / "large.html").write_text(content)
    view = opened(tmp_path / "large.html")
    first = view.locator("tr").count()
    assert 10 < first < 400
    view.locator("button", has_text="show 100 more of").click()
    pytest.importorskip("playwright.sync_api").expect(view.locator("tr")).to_have_count(first + 100)


def test_data_is_json(page: str, opened: Open) -> None:
    data = json.loads(opened(page).locator("#data").text_content())
    assert data["format"] == "circuit-sweeps/report"
