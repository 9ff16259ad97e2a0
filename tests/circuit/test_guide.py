"""The code of docs/circuits.md runs as it stands there, from top to bottom."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from planting import model_of_last_token

from circuit.tasks import task_data
from sparse_model.data.config import TokenizerConfig
from sparse_model.data.idioms.programs import programs
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.model.config import ModelConfig
from sparse_model.saved.pretrained import save_pretrained

GUIDE = Path(__file__).parents[2] / "docs" / "circuits.md"


@pytest.fixture
def planted_folder(tmp_path: Path) -> str:
    """A model that does else_elif through one channel: the last token writes it, the answers read it."""
    tokenizer = Tokenizer.train(itertools.islice(programs(seed=1), 1000), TokenizerConfig(vocab_size=1024))
    config = ModelConfig(vocab_size=1024, context=64, n_layer=1, d_model=16, bigram=False)
    model = model_of_last_token(task_data("else_elif", tokenizer, pairs=64, seed=0).train, config, 0)
    save_pretrained(model, tokenizer, str(tmp_path / "model"))
    return str(tmp_path / "model")


def test_the_guide_runs(
    planted_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.S)
    assert len(blocks) == 8
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    said = []
    for block in blocks:
        exec(compile(block.replace("my/model", planted_folder), str(GUIDE), "exec"), names)
        said.append(capsys.readouterr().out)
    assert said[0].startswith("ok 1 0 ")
    assert said[1].startswith("stopped ")
    assert "{'final.in': (0,)}" in said[2]
    assert "final.in.0" in said[4]
    assert "passes sufficiency, necessity" in said[7]


def test_the_guides_thresholds_are_those_of_the_code() -> None:
    from circuit.proofs import verdicts

    guide = GUIDE.read_text()
    assert f"at most {verdicts.HELDOUT_LIMIT:g} × the target" in guide
    assert f"at least {verdicts.RUINED:.3f}" in guide
    assert f"at most {verdicts.RESAMPLED:g} × the target" in guide
    assert f"at least {verdicts.STABLE * 100:g} %" in guide
    assert verdicts.CONTROL == 2
