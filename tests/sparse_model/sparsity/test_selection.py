"""One contract for the selection's definition and all its backends: exactly what the reference keeps is left."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import selection_cases
import torch
from selection_cases import cases
from torch import Tensor

from sparse_model.sparsity import cpu_projection, shard_projection
from sparse_model.sparsity.selection import Matrix, keep_mask

WORKER = Path(selection_cases.__file__).with_name("selection_worker.py")
CASES = cases()
KINDS = [*selection_cases.VALUES]
GPU = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="no triton for this machine")


def plainly(matrix: Matrix) -> set[tuple[int, int]]:
    """What the definition says, word for word, with sorted Python lists."""
    sizes = (matrix.weight.view(torch.int32) & 0x7FFFFFFF).tolist()
    entries = sorted((-size, r, c) for r, row in enumerate(sizes) for c, size in enumerate(row))
    kept: list[tuple[int, int, int]] = []
    for lane in range(matrix.weight.shape[1 if matrix.by_column else 0]):
        of_lane = [e for e in entries if e[2 if matrix.by_column else 1] == lane]
        kept += of_lane[: matrix.min_alive]
    others = [e for e in entries if e not in set(kept)]
    return {(r, c) for _, r, c in kept + others[: matrix.budget - len(kept)]}


def test_the_reference_is_the_definition():
    small = {what: matrix for what, matrix in CASES.items() if matrix.weight.numel() < 100}
    for what, matrix in small.items():
        assert {(r, c) for r, c in keep_mask(*matrix).nonzero().tolist()} == plainly(matrix), what


def on_cpu(threads: int) -> dict[str, Tensor]:
    found = cases()
    cpu_projection.project_on_cpu(list(found.values()), threads)
    return {what: matrix.weight for what, matrix in found.items()}


def without_waiting() -> dict[str, Tensor]:
    found = cases()
    shard_projection.project_whole(list(found.values()))
    return {what: matrix.weight for what, matrix in found.items()}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what other processes left of all cases."""
    out = tmp_path_factory.mktemp("elsewhere")
    # beside the script lies a folder of tests that is called like the package
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(WORKER.parents[1])}
    command = [sys.executable, WORKER, out, str(random.randrange(20_000, 30_000))]
    subprocess.run(command, env=environment, timeout=280, check=True)
    return out


BACKENDS = {
    "cpu": lambda: on_cpu(1),
    "cpu, two threads": lambda: on_cpu(2),
    "without waiting": without_waiting,
    "shards of two": 2,
    "shards of three": 3,
    "gpu": "gpu",
}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=GPU if name == "gpu" else ()) for name in BACKENDS])
def projected(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    backend = BACKENDS[request.param]
    if callable(backend):
        return backend()
    out: Path = request.getfixturevalue("elsewhere")
    parts = ["gpu"] if backend == "gpu" else [f"{rank} of {backend}" for rank in range(int(backend))]
    rows = [torch.load(out / f"{part}.pt") for part in parts]
    return {what: torch.cat([own[what] for own in rows]) for what in rows[0]}


class TestContract:
    """Every backend, on every kind of matrix."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_left_is_what_the_reference_keeps(self, projected: dict[str, Tensor], kind: str) -> None:
        found = {what: weight for what, weight in projected.items() if what.startswith(f"{kind} ")}
        assert found
        for what, weight in found.items():
            expected = torch.where(keep_mask(*CASES[what]), CASES[what].weight, 0.0)
            assert torch.equal(bits(weight), bits(expected)), what


def bits(weight: Tensor) -> Tensor:
    """Entries as integers, by which NaN can be compared; a zero has no sign."""
    return torch.where(weight == 0, 0, weight.view(torch.int32))
