"""A training process to be killed: train_worker.py DATA CHECKPOINTS."""

import os
import sys

import torch

from sparse_model.data import TokenDataset
from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.training.checkpoint import Checkpoints
from sparse_model.training.loop import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    model, recipe = (
        ModelConfig.model_validate_json(os.environ["MODEL"]),
        TrainConfig.model_validate_json(os.environ["RECIPE"]),
    )
    train(model, recipe, TokenDataset.open(sys.argv[1]), checkpoints=Checkpoints(sys.argv[2]))
