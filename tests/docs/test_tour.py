"""The notebook runs from top to bottom in a real kernel, on models as small as can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from docs.conftest import TASK

TOUR = Path(__file__).parents[2] / "docs" / "tour.ipynb"


@pytest.fixture
def cells(after_the_demo: Path) -> list[Any]:
    """What its cells of code say when they are run after the demo."""
    notebook = nbformat.read(TOUR, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "saved without outputs"
    for cell in notebook.cells:
        cell.source = cell.source.replace("bracket_counting", TASK)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(after_the_demo)}}).execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def said(outputs: list[Any]) -> str:
    """All that a cell says, as text and as HTML."""
    shown = [output.get("data", {}).get("text/html", "") + output.get("text", "") for output in outputs]
    return "\n".join(shown)


def test_the_tour_runs(cells: list[Any]) -> None:
    table, _, seen, found, still, page, ablated, held, compared = map(said, cells)
    assert "t00000-33693f6c" in table
    assert "layers.0.attn.q (1," in seen
    assert found.startswith("ok 1 nodes")
    assert "<svg" in still
    assert "<iframe srcdoc=" in page
    assert "final.in.0" in ablated
    assert held.count("final.in.0 at") == 3
    assert "nodes that match: " in compared
