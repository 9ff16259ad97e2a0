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
from waits import Waits

from sparse_model.data import TokenDataset
from sparse_model.distributed.sharding import gathered_whole, held, sharded_model
from sparse_model.distributed.workers import rank, world_size
from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.saved.pretrained import save_pretrained
from sparse_model.training import precision
from sparse_model.training.checkpoint import Checkpoints
from sparse_model.training.loop import Run, TrainResult, train

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
    keep_waits(data, out)
    keep_out_of_memory(data, out)


def four_workers(data: TokenDataset, out: Path) -> None:
    keep("ddp", data, out, parallel="ddp")
    result = keep("fsdp", data, out, parallel="fsdp")
    save_pretrained(result.model, data.tokenizer, str(out / "pretrained"))
    keep("from-2", data, out, parallel="fsdp", checkpoints=copy_of(out / "from-2-fsdp", out / "to-4"))
    keep_gradients(out)
    keep_memory(result, out)


def copy_of(checkpoints: Path, target: Path) -> Checkpoints:
    """A run that continues from these writes to a copy: others are to continue from the same."""
    if rank() == 0:
        shutil.copytree(checkpoints, target)
    dist.barrier()
    return Checkpoints(str(target))


def keep(name: str, data: TokenDataset, out: Path, recipe: TrainConfig = RECIPE, **options) -> TrainResult:
    """Train, and keep the final weights and every report."""
    reports = []
    result = train(MODEL, recipe, data, report=lambda metrics: reports.append(dict(metrics)), **options)
    weights = {n: gathered_whole(p).contiguous() for n, p in result.model.state_dict().items()}
    if rank() == 0:
        save_file(weights, out / f"{name}-{world_size()}.safetensors")
        (out / f"{name}-{world_size()}.json").write_text(json.dumps([*reports, result.metrics]))
    return result


def keep_out_of_memory(data: TokenDataset, out: Path) -> None:
    """Runs whose second worker has less memory than it needs: from the sixth step on one sequence fits, or none."""
    whole = SparseTransformer.forward
    calls, fits = [0], [1]

    def small(model, tokens, at_site=None, targets=None):
        calls[0] += targets is not None
        loss = whole(model, tokens, at_site, targets)
        if rank() == 1 and targets is not None and calls[0] > 5 and len(tokens) > fits[0]:
            raise torch.OutOfMemoryError("planted")
        return loss

    SparseTransformer.forward = small
    keep("oom", data, out, parallel="ddp")
    calls[0], fits[0] = 0, 0
    try:
        train(MODEL, RECIPE, data, parallel="ddp")
    except InputError as error:
        (out / f"oom-{rank()}.txt").write_text(str(error))
    SparseTransformer.forward = whole
    for parallel in ("ddp", "fsdp"):
        keep(f"micro-{parallel}", data, out, recipe=RECIPE.model_copy(update={"micro_batch": 3}), parallel=parallel)


def keep_waits(data: TokenDataset, out: Path) -> None:
    """What steps of one and of two layers wait for, replicated and sharded; and the type all compute in."""
    found: dict[str, object] = {}
    for parallel in ("ddp", "fsdp"):
        for layers in (1, 2):
            config = MODEL.model_copy(update={"n_layer": layers, "activation_fraction": 0.25})
            run = Run(config, RECIPE, data, torch.device("cpu"), parallel)
            with Waits() as waits:
                for step in range(10, 14):
                    run.optimise(step)
            found[f"{parallel} {layers}"] = waits.seen
    precision.CPU_INFO = out / f"cpuinfo-{rank()}"
    precision.CPU_INFO.write_text(f"flags : {'avx512_bf16' if rank() else 'fpu'}")
    found["type"] = precision.resolved(TrainConfig(), torch.device("cpu")).dtype
    (out / f"waits-{rank()}.json").write_text(json.dumps(found))


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
