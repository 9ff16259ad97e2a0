"""What the page of public things says is what there is; the version is one."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.cli import status_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "public.md").read_text()


@pytest.mark.parametrize("package", ["sparse_model", "circuit", "sweeps"])
def test_the_exports_are_those_of_the_page(package: str) -> None:
    (row,) = re.findall(rf"^\| `{package}` \| (.*) \|$", PAGE, flags=re.M)
    assert re.findall(r"`(\w+)`", row) == sorted(importlib.import_module(package).__all__)


def test_there_is_one_version_and_the_changelog_begins_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    import circuit
    import sparse_model
    import sweeps

    assert circuit.__version__ == sweeps.__version__ == sparse_model.__version__
    assert status_of(["--version"]) == 0
    assert capsys.readouterr().out == f"circuit-sweeps {sweeps.__version__}\n"
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert newest is not None
    assert newest[1] == sweeps.__version__
    assert f"circuit_sweeps-{sweeps.__version__}-py3-none-any.whl" in (ROOT / "docs" / "install.md").read_text()


def test_readme_is_for_one_day() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f"docs/{page.name}" in (ROOT / "README.md").read_text(), f"{page.name}: no way leads there"


def anchors(page: Path) -> set[str]:
    """The places within a page that links may name, as GitHub makes them of its headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> Iterator[tuple[Path, str]]:
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")):
        yield from ((page, target) for target in re.findall(r"\]\(([^)]+)", page.read_text()))
    for cell in json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]:
        found = re.findall(r"\]\(([^)]+)", "".join(cell["source"])) if cell["cell_type"] == "markdown" else []
        yield from ((ROOT / "docs" / "tour.ipynb", target) for target in found)


def test_links_lead_somewhere() -> None:
    for page, target in links():
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert "://" in target or there.exists(), f"{page.name}: {target}"
        assert "://" in target or not anchor or anchor in anchors(there), f"{page.name}: {target}"
