"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml
from moto.server import ThreadedMotoServer

os.environ.setdefault("OMP_NUM_THREADS", "1")  # test processes share few cores


@pytest.fixture
def raw_study(tmp_path: Any) -> dict[str, Any]:
    """A sound study as it is read from YAML, to be spoiled at will."""
    return {
        "name": "tiny",
        "storage": str(tmp_path / "results"),
        "corpus": {"sources": [{"source": "idioms", "megabytes": 0.3}]},
        "tokenizer": {"vocab_size": 400},
        "tasks": ["else_elif", "bracket_counting"],
        "trial": {
            "kind": {"choice": ["sparse", "dense"]},
            "model": {"n_layer": 1, "context": 96, "d_model": {"choice": [32, 64]}},
            "training": {"tokens": 20_000, "min_alive": 1, "lr": {"loguniform": [1e-3, 1e-1]}},
            "sparse": {"training": {"fraction": {"loguniform": [0.05, 0.5]}, "anneal": {"uniform": [0.2, 0.8]}}},
            "dense": {"training": {"warmup": 0.05}},
        },
        "search": {"trials": 12, "startup": 3, "in_flight": 3},
    }


@pytest.fixture
def study_text(raw_study: dict[str, Any]) -> Callable[..., str]:
    """`study_text({"search.trials": 0})` is the sound study with fields changed, as YAML."""

    def write(changes: dict[str, Any] | None = None) -> str:
        content = deepcopy(raw_study)
        for path, value in (changes or {}).items():
            *parents, last = path.split(".")
            place = content
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        return yaml.safe_dump(content)

    return write


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server in this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def ten_mistakes() -> dict[str, Any]:
    """Changes to the study text, each one mistake: what every reader of studies must name, all at once."""
    return {
        "nmae": "x",
        "corpus.heldout_fraction": 2,
        "tokenizer.vocab_size": 1,
        "tasks": ["nonsense"],
        "search.trials": -1,
        "seeds": [],
        "trial.model.d_model": {"choice": [32, 33]},
        "trial.training.lr": {"loguniform": [1, 0.1]},
        "trial.sparse.training.fraction": {"uniform": [0.5, 1.5]},
        "trial.dense.training.warmup": 1.5,
    }
