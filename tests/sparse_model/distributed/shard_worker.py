"""One of four processes: shard_worker.py RANK PORT DATA OUT. What it finds goes to OUT; test_sharding.py judges it."""

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from sparse_model.data import TokenDataset
from sparse_model.distributed.sharding import gathered_whole, held, sharded_model
from sparse_model.distributed.workers import rank, world_size
from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import save_pretrained
from sparse_model.sparsity.projection import Group
from sparse_model.sparsity.shard_projection import project_shards
from sparse_model.training.checkpoint import Checkpoints
from sparse_model.training.loop import TrainResult, train

MODEL, RECIPE = (ModelConfig(**json.loads(os.environ["MODEL"])), TrainConfig(**json.loads(os.environ["RECIPE"])))


class Stop(Exception):
    pass


class Stopping(Checkpoints):
    """Breaks the run off right after its first checkpoint."""

    def save(self, *state) -> None:
        super().save(*state)
        raise Stop


def main(me: int, port: int, data: TokenDataset, out: Path) -> None:
    for world, task in ((2, two_workers), (4, four_workers)):
        if me < world:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port + world)}
            dist.init_process_group("gloo", rank=me, world_size=world)
            task(data, out)
            dist.barrier()
            dist.destroy_process_group()


def two_workers(data: TokenDataset, out: Path) -> None:
    keep("fsdp", data, out, parallel="fsdp")
    for parallel in ("fsdp", "ddp"):
        with suppress(Stop):
            train(MODEL, RECIPE, data, checkpoints=Stopping(str(out / f"from-2-{parallel}")), parallel=parallel)
    dist.barrier()
    keep("fsdp-resumed", data, out, parallel="fsdp", checkpoints=copy_of(out / "from-2-fsdp", out / "to-2"))
    if rank() == 0:
        part = max((out / "to-2").iterdir()) / "__1_0.distcp"
        part.write_bytes(part.read_bytes()[:-100])
    dist.barrier()
    warned: list[str] = []
    damaged = Checkpoints(str(out / "to-2"), warn=warned.append)
    keep("fsdp-damaged", data, out, parallel="fsdp", checkpoints=damaged)
    (out / f"warned-{rank()}.json").write_text(json.dumps(warned))
    keep_projections(out)


def four_workers(data: TokenDataset, out: Path) -> None:
    keep("ddp", data, out, parallel="ddp")
    result = keep("fsdp", data, out, parallel="fsdp")
    save_pretrained(result.model, data.tokenizer, str(out / "pretrained"))
    keep("from-2", data, out, parallel="fsdp", checkpoints=copy_of(out / "from-2-fsdp", out / "to-4"))
    keep_projections(out)
    keep_gradients(out)
    keep_memory(result, out)


def copy_of(checkpoints: Path, target: Path) -> Checkpoints:
    """A run that continues from these writes to a copy: others are to continue from the same."""
    if rank() == 0:
        shutil.copytree(checkpoints, target)
    dist.barrier()
    return Checkpoints(str(target))


def keep(name: str, data: TokenDataset, out: Path, **options) -> TrainResult:
    """Train, and keep the final weights and every report."""
    reports = []
    result = train(MODEL, RECIPE, data, report=lambda metrics: reports.append(dict(metrics)), **options)
    weights = {n: gathered_whole(p).contiguous() for n, p in result.model.state_dict().items()}
    if rank() == 0:
        save_file(weights, out / f"{name}-{world_size()}.safetensors")
        (out / f"{name}-{world_size()}.json").write_text(json.dumps([*reports, result.metrics]))
    return result


def keep_projections(out: Path) -> None:
    """Matrices before and after the sharded projection, at many shapes, budgets and minima, with and without ties."""
    mesh = init_device_mesh("cpu", (world_size(),))
    generator = torch.Generator().manual_seed(1)
    tensors, groups = {}, []
    for case in range(48):
        n_rows, n_columns = (int(torch.randint(1, 12, (), generator=generator)) for _ in range(2))
        shape = (n_rows,) if case % 8 == 7 else (n_rows, n_columns)
        levels = (1, 3, 10_000)[case % 3]  # whole numbers: many ties, some, hardly any; zeros among them
        weight = torch.randint(-levels, levels + 1, shape, generator=generator).float() / 7
        by_column = len(shape) == 2 and case % 2 == 1
        keepers = weight.shape[by_column]
        most = weight.numel() // keepers
        min_alive = 0 if len(shape) == 1 else int(torch.randint(0, most + 1, (), generator=generator))
        least = max(1, min_alive * keepers)
        k = int(torch.randint(least, weight.numel() + 1, (), generator=generator))
        sharded = distribute_tensor(weight.clone(), mesh, [Shard(0)])
        groups.append(Group(f"{case}", sharded, k / weight.numel(), min_alive, by_column))
        tensors[f"{case}.before"] = weight
    project_shards(groups, 1.0)
    settings = {}
    for group in groups:
        tensors[f"{group.name}.after"] = gathered_whole(group.weight)
        settings[group.name] = [group.budget(1.0), group.min_alive, group.by_column]
    if rank() == 0:
        save_file(tensors, out / f"projections-{world_size()}.safetensors")
        (out / f"projections-{world_size()}.json").write_text(json.dumps(settings))


def keep_gradients(out: Path) -> None:
    """Gradients of a sharded model, each worker with tokens of its own; and those of one model with all of them."""
    torch.manual_seed(0)
    sharded = sharded_model(MODEL, torch.float32, torch.device("cpu"))
    tokens = torch.randint(0, MODEL.vocab_size, (8, MODEL.context + 1))
    mine = tokens[rank() :: world_size()]
    sharded(mine[:, :-1], targets=mine[:, 1:]).backward()
    torch.manual_seed(0)
    whole = SparseTransformer(MODEL)
    whole(tokens[:, :-1], targets=tokens[:, 1:]).backward()
    tensors = {f"sharded.{n}": gathered_whole(p.grad) for n, p in sharded.named_parameters()}
    tensors |= {f"whole.{n}": p.grad for n, p in whole.named_parameters()}
    if rank() == 0:
        save_file(tensors, out / "gradients.safetensors")


def keep_memory(result: TrainResult, out: Path) -> None:
    """How many weights this worker holds, and how many there are."""
    result.model.reshard()
    parameters = list(result.model.parameters())
    counts = [sum(held(p).numel() for p in parameters), sum(p.numel() for p in parameters)]
    (out / f"held-{rank()}.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), TokenDataset.open(sys.argv[3]), Path(sys.argv[4]))
