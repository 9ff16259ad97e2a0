"""Tokenising with Ray Data: the bytes of one process, from S3 to S3, and bad input refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sparse_model import storage
from sparse_model.data.config import CorpusConfig, TokenizerConfig
from sparse_model.data.loader import TokenDataset
from sparse_model.data.parts import RECORDS
from sparse_model.data.processes import in_turn
from sparse_model.data.shards import prepare
from sparse_model.errors import InputError
from sweeps.engine.tokens import on_ray
from sweeps.study.study import ResourceConfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ON_RAY = on_ray(ResourceConfig.model_validate({}), None)


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI to write to, given a name; Ray's workers inherit the credentials."""
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    name = f"b-{uuid4().hex}"
    storage.filesystem(f"s3://{name}?endpoint_override={s3_server}")[0].mkdir(name)
    return f"s3://{name}/%s?endpoint_override={s3_server}"


def make(corpus: CorpusConfig, root: str, **rest: Any) -> TokenDataset:
    return prepare(corpus, TokenizerConfig(vocab_size=400), root, part_bytes=20_000, **rest)


def files(dataset: TokenDataset) -> dict[str, bytes]:
    names = [name for name in storage.listdir(dataset.uri) if name != RECORDS]
    return {name: storage.read_bytes(storage.join(dataset.uri, name)) for name in names}


def test_ray_data_gives_the_bytes_of_one_process_and_goes_on_where_another_stopped(bucket: str, tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {n}: value = {n * n}; print('row', {n})"}) for n in range(3000)]
    storage.write_bytes_atomic(bucket % "rows.jsonl", "\n".join(rows).encode())
    corpus = CorpusConfig.model_validate(
        {
            "sources": [{"source": bucket % "rows.jsonl"}, {"source": "stdlib", "megabytes": 0.1}],
            "heldout_fraction": 0.1,
        }
    )

    def interrupt(stage: str, share: float) -> None:
        if stage == "tokens" and share > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(corpus, bucket % "ray", progress=interrupt, execute=in_turn)
    seen: list[float] = []
    on_ray = make(
        corpus,
        bucket % "ray",
        progress=lambda stage, share: seen.append(share) if stage == "tokens" else None,
        execute=ON_RAY,
    )
    assert seen[0] > 0.2
    assert len(seen) > 5, "not part by part"
    in_turn_ = make(corpus, str(tmp_path), execute=in_turn)
    assert len(in_turn_.manifest.train.shards) > 5
    assert files(on_ray) == files(in_turn_)


def test_bad_input_found_by_a_worker_is_refused_by_name(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {n}: value = {n * n}"}) for n in range(3000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 but no more")
    corpus = CorpusConfig.model_validate({"sources": [{"source": str(tmp_path), "megabytes": 10}]})
    with pytest.raises(InputError, match=r"cannot read .*damaged\.parquet") as refused:
        make(corpus, str(tmp_path / "root"), execute=ON_RAY)
    assert "\n" not in str(refused.value)
