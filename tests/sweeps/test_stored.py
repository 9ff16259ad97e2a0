"""Nothing is searched twice: a task whose circuits are stored gives their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from circuit.ablated.ablation import Pretraining
from circuit.search.config import PruneConfig
from sparse_model.data.config import CorpusConfig, TokenizerConfig
from sparse_model.data.processes import in_turn
from sparse_model.data.shards import prepare
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import save_pretrained
from sweeps.trial import stored, task_circuits
from sweeps.trial.task_circuits import prune_task, summarise_published

CONFIG = PruneConfig.model_validate({"pairs": 4, "steps": 3, "target_loss": 0.6})


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Pretraining]:
    """An untrained model, and what searches take of text."""
    root = tmp_path_factory.mktemp("published")
    corpus = CorpusConfig.model_validate({"sources": [{"source": "idioms", "megabytes": 0.2}], "heldout_fraction": 0.1})
    data = prepare(corpus, TokenizerConfig(vocab_size=400), str(root), execute=in_turn)
    config = ModelConfig(vocab_size=400, context=96, n_layer=1, d_model=16, d_head=8)
    for name in ("one", "other"):
        save_pretrained(SparseTransformer(config), data.tokenizer, str(root / name))
    return str(root / "one"), summarise_published(str(root / "one"), data.uri, 10**9, 1)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks that were searched."""
    seen, search = list[str](), task_circuits.find_circuits

    def counted(model: Any, task: Any, *arguments: Any, **more: Any) -> Any:
        seen.append(task.name)
        return search(model, task, *arguments, **more)

    monkeypatch.setattr(task_circuits, "find_circuits", counted)
    return seen


def test_only_what_is_missing_is_searched(
    published: tuple[str, Pretraining], searches: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, known = published
    uri = str(tmp_path / "circuits")

    def rows(task: str = "else_elif", targets: tuple[float, ...] = (0.6,), of: str = model, **more: Any) -> Any:
        return prune_task(of, task, CONFIG.model_copy(update=more), targets, uri, 1, known)

    first = rows()
    assert rows() == first
    assert searches == ["else_elif"]
    rows("while_return_true")
    assert rows() == first
    assert len(searches) == 2
    for changed in (
        lambda: rows(targets=(0.6, 0.5)),
        lambda: rows(steps=4),
        lambda: rows(of=model.replace("one", "other")),
        lambda: prune_task(model, "else_elif", CONFIG, (0.6,), uri, 1, known, proofs="full"),
    ):
        before = len(searches)
        changed()
        changed()
        assert len(searches) == before + 1
    for version in ("SEARCH_VERSION", "SCHEMA_VERSION"):
        rows()
        before = len(searches)
        with monkeypatch.context() as later:
            later.setattr(stored, version, getattr(stored, version) + 1)
            rows()
        assert len(searches) == before + 1, f"circuits of an earlier {version} were taken for this one's"
    rows()
    count = len(searches)
    (tmp_path / "circuits" / "else_elif.json").unlink()
    rows()
    assert len(searches) == count + 1, "a circuit that is gone is searched again"
    (tmp_path / "circuits" / ".rows" / "else_elif.json").write_text('{"mark": ')
    rows()
    assert len(searches) == count + 2, "a record that cannot be read is none"
