"""One training process: train_worker.py DATA CHECKPOINTS OUT [RANK WORLD PORT]; the final state goes to OUT."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from sparse_model.checkpoint import LocalCheckpoints
from sparse_model.config import ModelConfig, TrainConfig
from sparse_model.data import TokenDataset
from sparse_model.training import train


def main(data: str, checkpoints: str, out: str, rank: str = "0", world: str = "1", port: str = "0") -> None:
    torch.set_num_threads(1)
    if int(world) > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        dist.init_process_group("gloo", rank=int(rank), world_size=int(world))
    configs = json.loads(os.environ["TRAINING"])
    model, recipe = ModelConfig(**configs["model"]), TrainConfig(**configs["recipe"])
    store = LocalCheckpoints(Path(checkpoints), rank=int(rank))
    result = train(model, recipe, TokenDataset.open(data), checkpoints=store)
    save_file(result.model.state_dict(), f"{out}-{rank}.safetensors")
    Path(f"{out}-{rank}.json").write_text(json.dumps(result.metrics))
    if int(world) > 1:
        dist.destroy_process_group()  # or its threads may abort the process at its end


if __name__ == "__main__":
    main(*sys.argv[1:])
