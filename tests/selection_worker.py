"""Projects all cases: `selection_worker.py shards OUT RANK WORLD PORT`, or `selection_worker.py gpu OUT`."""

import os
import sys

import torch
import torch.distributed as dist
from selection_cases import cases


def shards(out: str, rank: str, world: str, port: str) -> None:
    """Rows spread over workers; each keeps its own."""
    from sparse_model.distributed.sharding import own_rows
    from sparse_model.sparsity.shard_projection import ShardPart, project_parts

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group("gloo", rank=int(rank), world_size=int(world))
    parts = {}
    for what, matrix in cases().items():
        rows = len(matrix.weight)
        own = matrix.weight[own_rows(rows)].clone()
        parts[what] = ShardPart(matrix._replace(weight=own), rows)
    project_parts(list(parts.values()), spread=True)
    torch.save({what: part.matrix.weight for what, part in parts.items()}, out)
    dist.destroy_process_group()


def gpu(out: str) -> None:
    """The GPU's kernels, on a CPU under Triton's interpreter, which takes its time: one shape, and few budgets."""
    from sparse_model.kernels.selection import project_matrices

    found = dict([(what, matrix) for what, matrix in cases().items() if " 11x9 " in what][::3])
    project_matrices(list(found.values()))
    torch.save({what: matrix.weight for what, matrix in found.items()}, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"shards": shards, "gpu": gpu}[sys.argv[1]](*sys.argv[2:])
