"""Projects all cases elsewhere: `selection_worker.py OUT PORT`, as rows spread over two and over three workers, and as
a GPU does where there is triton. What is left goes to files in OUT."""

import importlib.util
import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from forks import in_copies
from selection_cases import cases

from sparse_model.distributed.sharding import own_rows
from sparse_model.sparsity.shard_projection import ShardPart, project_parts


def shards(out: Path, rank: int, world: int, port: int) -> None:
    """Rows spread over workers; each keeps its own."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port + world)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    parts = {}
    for what, matrix in cases().items():
        rows = len(matrix.weight)
        own = matrix.weight[own_rows(rows)].clone()
        parts[what] = ShardPart(matrix._replace(weight=own), rows)
    project_parts(list(parts.values()), spread=True)
    torch.save({what: part.matrix.weight for what, part in parts.items()}, out / f"{rank} of {world}.pt")
    dist.destroy_process_group()


def gpu(out: Path) -> None:
    """The GPU's kernels, on a CPU under Triton's interpreter, which takes its time: one shape, and few budgets."""
    from sparse_model.kernels.selection import project_matrices

    found = dict([(what, matrix) for what, matrix in cases().items() if " 11x9 " in what][::3])
    project_matrices(list(found.values()))
    torch.save({what: matrix.weight for what, matrix in found.items()}, out / "gpu.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, port = Path(sys.argv[1]), int(sys.argv[2])
    works = [partial(shards, out, rank, world, port) for world in (2, 3) for rank in range(world)]
    in_copies([*works, partial(gpu, out)] if importlib.util.find_spec("triton") else works, 280)
