"""The pages' scripts, put together as pages have them, under a linter."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from circuit.pages.build import SCRIPTS
from circuit.pages.render import asset

BUNDLES = {
    "circuit": [*(asset(name) for name in SCRIPTS), asset("ready.js")],
    "report": [
        asset("base.js"),
        *(asset(name, "sweeps.pages") for name in ("study.js", "panels.js")),
        asset("ready.js"),
    ],
}
HTML = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")


@pytest.mark.parametrize("name", BUNDLES)
def test_scripts_pass_the_linter_and_never_parse_html(name: str, tmp_path: Path) -> None:
    linter = shutil.which("oxlint", path=str(Path(sys.executable).parent))
    assert linter, "oxlint is pinned in requirements.lock"
    path = tmp_path / f"{name}.js"
    path.write_text("\n".join(BUNDLES[name]))
    rules = Path(__file__).parents[2] / ".oxlintrc.json"
    done = subprocess.run([linter, "-c", str(rules), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert not [word for word in HTML if word in path.read_text()]
