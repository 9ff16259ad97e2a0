"""Four processes: shard_worker.py PORT DATA OUT. What they find goes to OUT; test_sharding.py judges it."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from forks import in_copies
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from waits import Waits

from sparse_model.data import TokenDataset
from sparse_model.distributed.sharding import gathered_whole, held, sharded_model
from sparse_model.distributed.workers import rank, summed, world_size
from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import MLP, SparseTransformer
from sparse_model.saved.pretrained import save_pretrained
from sparse_model.training import precision
from sparse_model.training.checkpoint import Checkpoints
from sparse_model.training.loop import Run, TrainResult, train
from sparse_model.training.passes import Passes

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
    keep_gradients(out)
    keep_out_of_memory(data, out)


def four_workers(data: TokenDataset, out: Path) -> None:
    keep("ddp", data, out, parallel="ddp")
    result = keep("fsdp", data, out, parallel="fsdp")
    save_pretrained(result.model, data.tokenizer, str(out / "pretrained"))
    keep("from-2", data, out, parallel="fsdp", checkpoints=copy_of(out / "from-2-fsdp", out / "to-4"))
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
    for parallel, where in (("ddp", "after the forward pass"), ("fsdp", "in a layer's backward pass")):
        with too_small(where, passes=5, fits=1):
            keep(f"oom-{parallel}", data, out, parallel=parallel)
        with too_small(where, passes=0, fits=0):
            try:
                train(MODEL, RECIPE, data, parallel=parallel)
            except InputError as error:
                (out / f"oom-{parallel}-{rank()}.txt").write_text(str(error))
    for parallel in ("ddp", "fsdp"):
        keep(f"micro-{parallel}", data, out, recipe=RECIPE.model_copy(update={"micro_batch": 3}), parallel=parallel)


PLACES = {
    "in the embedding": (SparseTransformer, "embedded"),
    "in a layer": (MLP, "forward"),
    "in the loss": (SparseTransformer, "loss_of"),
    "after the forward pass": (SparseTransformer, "forward"),
}
for name in list(PLACES)[:3]:
    PLACES[f"{name}'s backward pass"] = PLACES[name]


@contextmanager
def too_small(where: str, passes: int, fits: int) -> Iterator[None]:
    """From so many forward passes on no more than `fits` sequences fit the second worker's memory at that place."""
    owner, attribute = PLACES[where]
    whole = getattr(owner, attribute)
    calls = [0]

    def small(module, x, *rest, **options):
        learning = torch.is_grad_enabled()
        calls[0] += learning
        result = whole(module, x, *rest, **options)
        if rank() == 1 and learning and calls[0] > passes and len(x) > fits:
            if "backward" not in where:
                raise torch.OutOfMemoryError("planted")
            result = NoMemory.apply(result)
        return result

    setattr(owner, attribute, small)
    yield
    setattr(owner, attribute, whole)


class NoMemory(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise torch.OutOfMemoryError("planted")


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
    """Gradients of a sharded model, each worker with tokens of its own, wherever it runs out of memory; and those of
    one model with all of them. And both in bfloat16, with what is sent then."""
    tokens = torch.randint(0, MODEL.vocab_size, (8, MODEL.context + 1), generator=torch.Generator().manual_seed(0))
    mine = tokens[rank() :: world_size()]
    tensors = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        whole = SparseTransformer(MODEL, dtype)
        loss = whole(tokens[:, :-1], targets=tokens[:, 1:])
        loss.backward()
        tensors |= {f"whole {dtype} {n}": p.grad for n, p in whole.named_parameters()}
        for where in (None, *PLACES) if dtype is torch.float32 else (None,):
            torch.manual_seed(0)
            passes = Passes(sharded_model(MODEL, dtype, torch.device("cpu")), len(mine), sharded=True)
            with too_small(where, passes=0, fits=1) if where else nullcontext(), Sent() as sent:
                own = passes(mine)
            tensors |= {f"{where} {dtype} {n}": gathered_whole(p.grad) for n, p in passes.model.named_parameters()}
            found = {"loss": float(summed(own)) / world_size(), "whole": loss.item(), "size": passes.size}
            (out / f"passes-{where}-{dtype}-{rank()}.json").write_text(json.dumps(found | {"sent": sent.types}))
    if rank() == 0:
        save_file(tensors, out / "gradients.safetensors")


class Sent(TorchDispatchMode):
    """While it is active, `types` has in which types weights are gathered and gradients sent, in that order."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and ("allgather" in str(func) or "reduce_scatter" in str(func)):
            self.types.append(f"{func.overloadpacket.__name__} {args[1].dtype}")
        return func(*args, **(kwargs or {}))


def keep_memory(result: TrainResult, out: Path) -> None:
    """How many weights this worker holds, and how many there are."""
    result.model.reshard()
    parameters = list(result.model.parameters())
    counts = [sum(held(p).numel() for p in parameters), sum(p.numel() for p in parameters)]
    (out / f"held-{rank()}.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = int(sys.argv[1]), TokenDataset.open(sys.argv[2]), Path(sys.argv[3])
    in_copies([partial(main, me, *options) for me in range(4)], 250)
