"""Everything that only a GPU can show, in one command without Ray: `python benchmarks/gpu.py --json FILE`.

Sections run in the order of their value, each within its share of `--minutes`; what fails is written down, and the next
one begins. On a CPU every section runs at toy size, so that nothing but the device is new where there is one. Needs
torch 2.11 or later with Triton; `--needs` prints which other packages.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import itertools
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]  # the packages need not be installed

from gpu_kernels import DEVICE, GPU, KERNEL_CHECKS, Figures, kernel_times
from gpu_steps import on_device, our_step, plain_step, sync, timed
from timing import medians_ms
from train_step import D_HEAD, PEAK_FLOPS, SHAPES, restoring

from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.sparsity.projection import project, projected_groups
from sparse_model.training.measures import flops_per_token
from sparse_model.training.optimizer import SparseOptimizer

NEEDS = ("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions", "numpy", "pyarrow",
         "fsspec", "safetensors", "tokenizers", "networkx")  # fmt: skip


class Session:
    """What sections share: the time that is left, and what one makes for another."""

    def __init__(self, seconds: float, folder: Path) -> None:
        self.end = time.monotonic() + seconds
        self.folder = folder
        self.made: dict[str, Any] = {}

    def left(self) -> float:
        return self.end - time.monotonic()

    def data(self) -> Any:
        """A small corpus of idioms as tokens, made once."""
        from sparse_model.data import CorpusConfig, SourceConfig, TokenizerConfig, prepare

        if "data" not in self.made:
            size, vocabulary = (8.0, 2048) if GPU else (0.4, 800)
            sources = (SourceConfig(source="idioms", megabytes=size), SourceConfig(source="stdlib", megabytes=size / 8))
            corpus = CorpusConfig(sources=sources, heldout_fraction=0.05)
            tokenizer = TokenizerConfig(vocab_size=vocabulary, training_megabytes=size / 2)
            self.made["data"] = prepare(corpus, tokenizer, str(self.folder / "data"))
        return self.made["data"]


# --- sections ---------------------------------------------------------------------------------------------------------


def device(session: Session) -> Figures:
    """What machine this is, and its two ceilings: bytes copied and products multiplied per second."""
    about: Figures = {"torch": torch.__version__, "python": platform.python_version(), "device": "cpu"}
    if GPU:
        import triton

        properties = torch.cuda.get_device_properties(0)
        about |= {"triton": triton.__version__, "device": properties.name, "memory_gb": properties.total_memory / 2**30}
    n = 8192 if GPU else 256
    a, b = (torch.randn(n, n, device=DEVICE).bfloat16() for _ in range(2))
    taken = medians_ms({"product": lambda: a @ b, "copy": lambda: a.clone()}, 10)
    return about | {
        "product_tflops": 2 * n**3 / taken["product"] / 1e9,
        "copy_gb_per_second": 2 * a.numel() * 2 / taken["copy"] / 1e6,
    }


def kernels(session: Session) -> Figures:
    """Each kernel beside its reference on the device: `wrong` counts cases that differ; then the time of each."""
    wrong, cases = [], 0
    for name, check in KERNEL_CHECKS.items():
        for case in check():
            cases += 1
            label, error, allowed = case
            if not error <= allowed:
                wrong.append(f"{name} {label}: {error}")
    return {"cases": cases, "wrong": wrong} | kernel_times()


def train_step_small(session: Session) -> Figures:
    return {shape: steps(shape, session) for shape in (("tiny", "small") if GPU else ("toy",))}


def train_step_paper(session: Session) -> Figures:
    return {shape: steps(shape, session) for shape in (("medium", "paper") if GPU else ("toy",))}


TOY = {"d_model": 32, "n_layer": 2, "context": 96, "batch": 4}
FRACTION, ALIVE = (1 / 16, 4) if GPU else (1 / 2, 1)


def steps(shape: str, session: Session) -> Figures:
    """A step of ours, sparse and dense, beside a plain dense GPT's as it is and compiled; its shares, waits, memory."""
    sizes = dict(SHAPES.get(shape, TOY))
    batch = sizes.pop("batch")
    sparse = ModelConfig(**sizes, d_head=D_HEAD)
    dense = ModelConfig(**sizes, d_head=D_HEAD, activation_fraction=1)
    tokens = torch.randint(0, sparse.vocab_size, (batch, sparse.context + 1), device=DEVICE)
    recipe = TrainConfig(fraction=FRACTION, min_alive=ALIVE, anneal=0)
    found: Figures = {}
    rounds = 10 if GPU else 1
    builders = {
        "sparse": lambda: our_step(sparse, recipe, tokens),
        "dense": lambda: our_step(dense, TrainConfig(), tokens),
        "plain_dense": lambda: plain_step(dense, tokens, False),
        "plain_dense_compiled": lambda: plain_step(dense, tokens, True),
        "sparse_compiled": lambda: our_step(sparse, recipe, tokens, compiled=True),
        "sparse_graph": lambda: our_step(sparse, recipe, tokens, graph=True),
    }
    for name, build in builders.items():
        if session.left() < 8:
            found[f"{name}_error"] = "no time left"
            continue
        try:
            found |= timed(name, build(), rounds, profile=name.startswith("sparse"))
        except Exception as error:
            found[f"{name}_error"] = one_line(error)
        release()
    flops = flops_per_token(sparse) * batch * sparse.context
    for name in builders:
        if f"{name}_ms" in found:
            found[f"{name}_tokens_per_second"] = batch * sparse.context / found[f"{name}_ms"] * 1e3
            found[f"{name}_mfu"] = flops / (found[f"{name}_ms"] / 1e3) / PEAK_FLOPS
    best = min(found[f"{n}_ms"] for n in ("plain_dense", "plain_dense_compiled") if f"{n}_ms" in found)
    ours = min(found[f"{n}_ms"] for n in builders if n.startswith("sparse") and f"{n}_ms" in found)
    return found | {"sparse_over_plain_dense": ours / best}


def projection(session: Session) -> Figures:
    """The projection of a whole model, with the weights restored before each; restoring is taken off."""
    found = {}
    for shape in ("small", "paper") if GPU else ("toy",):
        sizes = {k: v for k, v in SHAPES.get(shape, TOY).items() if k != "batch"}
        for j in (0, ALIVE):
            model = on_device(lambda s=sizes: SparseTransformer(ModelConfig(**s, d_head=D_HEAD)))
            groups = projected_groups(model, TrainConfig(fraction=FRACTION, min_alive=j))
            restore = restoring(groups, uneven=0.5 if j else 0.0)
            both = {"restore": restore, "both": lambda r=restore, g=groups: (r(), project(g, 1.0))}
            taken = medians_ms(both, 10 if GPU else 1)
            found[f"{shape}_min_alive_{j}_ms"] = taken["both"] - taken["restore"]
            l0 = sum(int(group.weight.count_nonzero()) for group in groups)
            found[f"{shape}_min_alive_{j}_l0_is_budget"] = l0 == sum(group.budget(1.0) for group in groups)
            del model, groups, restore, both
            release()
    return found


def training(session: Session) -> Figures:
    """A short real training in bfloat16: the loss falls, budgets are exact, and a resumed run ends with its weights."""
    from sparse_model.training.checkpoint import Checkpoints
    from sparse_model.training.loop import train

    data = session.data()
    width, tokens = (256, 12_000_000) if GPU else (32, 16_000)
    config = ModelConfig(vocab_size=data.tokenizer.vocab_size, context=128 if GPU else 96, n_layer=3 if GPU else 2,
                         d_model=width, d_head=16, positions="learned")  # fmt: skip
    batch = 64 if GPU else 8
    recipe = TrainConfig(tokens=tokens, batch_size=batch, fraction=0.06, min_alive=1, lr=0.1, dtype="bfloat16",
                         log_every=50 if GPU else 5, eval_every=300, checkpoint_every=10_000)  # fmt: skip
    losses: list[tuple[int, float, float]] = []
    start = time.monotonic()

    def told(m: Any) -> None:
        losses.append((int(m["step"]), round(float(m["train_loss"]), 4), round(float(m.get("val_loss", 0)), 4)))

    result = train(config, recipe, data, device=DEVICE, report=told)
    seconds = time.monotonic() - start
    session.made["model"] = result.model
    groups = projected_groups(result.model, recipe)
    exact = all(int(g.weight.count_nonzero()) <= g.budget(1.0) for g in groups)
    found = {
        "status": result.status, "losses": losses[:: max(1, len(losses) // 20)], "val_loss": result.metrics["val_loss"],
        "dead_neurons": result.metrics["dead_neurons"], "seconds": seconds,
        "tokens_per_second": tokens / seconds, "budgets_kept": exact,
        "l0": sum(int(g.weight.count_nonzero()) for g in groups), "l0_budget": sum(g.budget(1.0) for g in groups),
    }  # fmt: skip
    found["check_loss"] = {where: checked(result.model, data, where) for where in {"cpu", DEVICE.type}}
    result.model.to(DEVICE)
    return found | resumed(session, config, recipe, data, Checkpoints, train)


def checked(model: Any, data: Any, where: str) -> Figures:
    """The loss of one held-out batch and of one training batch, on the device and on the CPU."""
    model.to(where)
    T = model.config.context
    heldout = torch.from_numpy(next(iter(data.heldout_batches(16, T, 16 * T)))).to(where)
    rows = data.batch("train", 0, batch_size=16, context=T, seed=0, rank=0, world=1)
    seen = torch.from_numpy(rows).to(where)
    with torch.no_grad():
        return {
            name: float(model(batch[:, :-1], targets=batch[:, 1:]))
            for name, batch in (("heldout", heldout), ("train", seen))
        }


def resumed(session: Session, config: Any, recipe: Any, data: Any, checkpoints: Any, train: Any) -> Figures:
    """A run that is cut off after three fifths and goes on from its checkpoint, beside one that is not."""
    each = recipe.batch_size * config.context
    fifth = 12 if GPU else 2
    short = recipe.model_copy(update={"tokens": 5 * fifth * each, "checkpoint_every": 2 * fifth, "log_every": fifth})

    class CutOff(Exception):
        pass

    def cut(metrics: Any) -> None:
        if metrics["step"] >= 3 * fifth:
            raise CutOff

    folder = str(session.folder / "checkpoints")
    whole = train(config, short, data, device=DEVICE)
    with contextlib.suppress(CutOff):
        train(config, short, data, device=DEVICE, checkpoints=checkpoints(folder), report=cut)
    again = train(config, short, data, device=DEVICE, checkpoints=checkpoints(folder))
    pairs = list(zip(whole.model.parameters(), again.model.parameters(), strict=True))
    return {
        "resumed_bit_for_bit": all(torch.equal(a, b) for a, b in pairs),
        # sums in no fixed order on a GPU: two runs differ a little, resumed or not
        "resumed_val_loss_difference": abs(whole.metrics["val_loss"] - again.metrics["val_loss"]),
    }


def pruning(session: Session) -> Figures:
    """Circuits of the model that `training` made, on the device and on one core: sizes and seconds of each."""
    from circuit.ablated.ablation import mean_activations
    from circuit.pruning import find_circuits
    from circuit.search.config import PruneConfig
    from circuit.tasks import task_data

    model, data = session.made["model"], session.data()
    context = model.config.context
    windows = list(data.heldout_batches(32, context, 16_384 if GPU else 2_000))
    text = torch.from_numpy(windows[0][:, :-1]).long()
    names = ("single_double_quote", "bracket_brace", "if_equals", "var_if") if GPU else ("bracket_brace",)
    config = PruneConfig(pairs=256, edges=False) if GPU else PruneConfig(pairs=8, steps=4, target_loss=0.7)
    found: Figures = {}
    for name in names:
        sides = {}
        for where in (DEVICE, torch.device("cpu")) if GPU else (DEVICE,):
            if session.left() < 5:
                break
            here = model.to(where)
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            task = task_data(name, data.tokenizer, pairs=config.pairs, seed=0)
            means = mean_activations(here, [text.to(where)])
            start = time.monotonic()
            (circuit,) = find_circuits(here, task, means, config, (config.target_loss,), ("node",))
            sync()
            sides[where.type] = {
                "status": circuit.status, "nodes": circuit.n_nodes, "edges": circuit.n_edges,
                "heldout_loss": circuit.heldout_loss, "unpruned_loss": circuit.unpruned_loss,
                "seconds": time.monotonic() - start,
            }  # fmt: skip
            torch.set_num_threads(threads)
        model.to(DEVICE)
        found[name] = sides
    return found


def mask_learning_paper(session: Session) -> Figures:
    """A step of mask learning on a model of 8 x 2048 with random weights, 1/256 of them nonzero."""
    from circuit.ablated.ablation import mean_activations
    from circuit.pruning import find_circuits
    from circuit.search.config import PruneConfig
    from circuit.tasks import task_data

    data = session.data()
    sizes = {k: v for k, v in (SHAPES["paper"] if GPU else TOY).items() if k != "batch"}
    config = ModelConfig(**sizes | {"vocab_size": data.tokenizer.vocab_size}, d_head=D_HEAD)
    model = on_device(lambda: SparseTransformer(config))
    project(projected_groups(model, TrainConfig(fraction=1 / 256 if GPU else FRACTION, min_alive=ALIVE)), 1.0)
    means = mean_activations(model, [torch.zeros(1, 16, dtype=torch.long, device=DEVICE)])
    task = task_data("bracket_brace", data.tokenizer, pairs=256 if GPU else 8, seed=0)
    ticks: list[tuple[str, float]] = []

    def tick(update: Any) -> bool:
        sync()
        ticks.append((update.stage, time.monotonic()))
        return len(ticks) >= (40 if GPU else 4) or session.left() < 3

    # a target that anything reaches, so that the search begins
    asked = PruneConfig(pairs=256 if GPU else 8, target_loss=50.0, solved_loss=50.0, steps=60, edges=False)
    start = time.monotonic()
    find_circuits(model, task, means, asked, (50.0,), ("node",), progress=tick)
    times = [b - a for (_, a), (_, b) in itertools.pairwise(ticks)]
    found: Figures = {"steps_seen": len(ticks), "before_the_first_seconds": (ticks[0][1] - start) if ticks else None}
    if times:
        ordered = sorted(times)
        found |= {"step_ms": 1e3 * ordered[len(ordered) // 2], "first_steps_ms": [1e3 * t for t in times[:4]]}
    if GPU:
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def fsdp(session: Session) -> Figures:
    """Sharded training in a process group of one (NCCL on a GPU): its weights beside those of a run without."""
    import torch.distributed as dist

    from sparse_model.distributed.sharding import gathered_whole, sharded_model

    config = ModelConfig(**{k: v for k, v in TOY.items() if k != "batch"}, vocab_size=64, d_head=8)
    recipe = TrainConfig(fraction=0.2, min_alive=1, lr=0.05)
    batches = [torch.randint(0, 64, (4, 97), generator=torch.Generator().manual_seed(i)) for i in range(5)]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("nccl" if GPU else "gloo", rank=0, world_size=1)
    try:
        ended, is_sharded = [], []
        for build in (
            lambda: sharded_model(config, torch.float32, DEVICE),
            lambda: SparseTransformer(config).to(DEVICE),
        ):
            torch.manual_seed(0)
            model = build()
            optimizer = SparseOptimizer(model, recipe, n_steps=5)
            for i, batch in enumerate(batches):
                tokens = batch.to(DEVICE)
                model(tokens[:, :-1], targets=tokens[:, 1:]).backward()
                optimizer.step(i)
            is_sharded.append(optimizer.sharded)
            ended.append({name: gathered_whole(p) for name, p in model.named_parameters()})
        sharded, whole = ended
        return {
            "sharded": is_sharded,
            "largest_difference": max(float((sharded[n] - whole[n]).abs().max()) for n in whole),
            "same_zeros": all(torch.equal(sharded[n] == 0, whole[n] == 0) for n in whole),
        }
    finally:
        dist.destroy_process_group()


SECTIONS: dict[str, tuple[Callable[[Session], Figures], float]] = {
    "device": (device, 0.03),
    "kernels": (kernels, 0.12),
    "train_step_small": (train_step_small, 0.2),
    "training": (training, 0.25),
    "projection": (projection, 0.08),
    "train_step_paper": (train_step_paper, 0.25),
    "mask_learning_paper": (mask_learning_paper, 0.08),
    "fsdp": (fsdp, 0.05),
    "pruning": (pruning, 0.25),
}
"""Name -> what it does, and the share of the time it may take; what those before it did not need, it may have too."""


def release() -> None:
    import gc

    gc.collect()
    if GPU:
        torch._dynamo.reset()  # or another shape makes it compile for any
        torch.cuda.empty_cache()


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:1500]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures into this file, after every section")
    parser.add_argument("--minutes", type=float, default=5.0, help="for everything (default: 5)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections (default: all)")
    parser.add_argument("--needs", action="store_true", help="print the packages needed beside torch, and end")
    options = parser.parse_args()
    if options.needs:
        print("\n".join(NEEDS))
        return
    faulthandler.enable()  # a library that crashes says where
    begun, figures = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        spare = 0.0
        for name, (section, share) in SECTIONS.items():
            if options.only and name not in options.only:
                continue
            allowed = min(60 * options.minutes * share + spare, 60 * options.minutes - (time.monotonic() - begun))
            session = sessions.setdefault("one", Session(0, Path(folder)))
            session.end = time.monotonic() + allowed
            figures[name] = told = run(section, session)
            spare = max(0.0, allowed - told["seconds_taken"])
            print(f"== {name} ({told['seconds_taken']:.1f} s)\n{json.dumps(told, indent=1, default=str)}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(figures, indent=1, default=str))
    failed = [name for name, told in figures.items() if "error" in told]
    print(f"{len(figures) - len(failed)} of {len(figures)} sections ran" + (f"; failed: {failed}" if failed else ""))


sessions: dict[str, Session] = {}


def run(section: Callable[[Session], Figures], session: Session) -> Figures:
    start = time.monotonic()
    if session.left() <= 1:
        return {"error": "no time left", "seconds_taken": 0.0}
    try:
        found = section(session)
    except Exception as error:
        found = {"error": one_line(error), "traceback": traceback.format_exc()[-3000:]}
    release()
    return found | {"seconds_taken": time.monotonic() - start}


if __name__ == "__main__":
    main()
