"""Weight sparsity (METHOD 3): which weights are under a budget, the projection onto it, and the L0 anneal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sparse_model.distributed.sharding import held
from sparse_model.distributed.workers import summed
from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.sparsity import cpu_projection, shard_projection
from sparse_model.sparsity.selection import Matrix
from sparse_model.sparsity.shard_projection import ShardPart, project_parts

NEVER_PROJECTED = ("bigram", "sink", "gain", "offset")
EMBEDDINGS = ("embedding", "unembedding")


@dataclass(frozen=True)
class Group:
    """One projected tensor: its target share, and how many nonzeros each of its rows (or columns) keeps at least."""

    name: str
    weight: Tensor
    fraction: float
    min_alive: int
    by_column: bool

    def budget(self, progress: float) -> int:
        """Nonzeros allowed when the anneal is `progress` (0 to 1) of its way from everything to the target."""
        return max(1, round((1 + progress * (self.fraction - 1)) * self.weight.numel()))


def projected_groups(model: SparseTransformer, recipe: TrainConfig) -> list[Group]:
    """The tensors under a budget: every weight matrix, bias and embedding; not the bigram table, sinks or norms."""
    return [
        Group(name, weight, *_rule(name, recipe))
        for name, weight in model.named_parameters()
        if not name.endswith(NEVER_PROJECTED) and not (recipe.dense_biases and name.endswith("bias"))
    ]


def _rule(name: str, recipe: TrainConfig) -> tuple[float, int, bool]:
    """(fraction, min_alive, by_column): a neuron or channel is a row of up or qkv, a column of down or out."""
    if name in EMBEDDINGS:
        return recipe.embedding_fraction or recipe.fraction, 0, False
    in_layer = name.startswith("layers.") and name.endswith("weight")
    return recipe.fraction, recipe.min_alive if in_layer else 0, name.endswith(("out.weight", "down.weight"))


def check_budget(model: ModelConfig, recipe: TrainConfig) -> None:
    """Refuse a recipe whose minimum alive exceeds the whole budget of a matrix (METHOD 3, known trap).

    What stays dense has all of its weights, so it has no minimum.
    """
    with torch.device("meta"):
        groups = projected_groups(SparseTransformer(model), recipe)
    for group in groups:
        if group.fraction == 1:
            continue
        keepers = group.weight.shape[1 if group.by_column else 0]
        if group.min_alive * keepers > group.budget(1):
            raise InputError(
                f"min_alive {recipe.min_alive}: {keepers} channels of {group.name} would keep "
                f"{group.min_alive * keepers} weights, but fraction {recipe.fraction:g} allows {group.budget(1)}; "
                f"allowed: min_alive at most {group.budget(1) // keepers} here, or a larger fraction or width"
            )


def anneal_progress(step: int, n_steps: int, anneal: float) -> float:
    """How far the L0 budget has fallen at a step (0: dense, 1: at its target): linear over the first `anneal` share."""
    return 1.0 if anneal == 0 else min(1.0, step / (anneal * n_steps))


@torch.no_grad()
def project(groups: Sequence[Group], progress: float) -> None:
    """Zero, in place, all but the budgeted largest magnitudes of every group.

    Where a model is sharded all workers call this alike. A GPU is asked nothing.
    """
    cut = [(group, group.budget(progress)) for group in groups if group.fraction < 1]
    cut = [(group, k) for group, k in cut if k < group.weight.numel()]
    matrices = [_matrix(group, k) for group, k in cut]
    if any(isinstance(group.weight, DTensor) for group, _ in cut):
        parts = [ShardPart(matrix, len(group.weight)) for matrix, (group, _) in zip(matrices, cut, strict=True)]
        project_parts(parts, spread=True)
    elif matrices and matrices[0].weight.is_cuda:
        _project_on_gpu(matrices)
    elif matrices:
        # torch's own threads keep their cores busy for a while after every operation
        cpu_projection.project_on_cpu(matrices, max(1, torch.get_num_threads() // 2))


def _matrix(group: Group, k: int) -> Matrix:
    """What this worker holds of a group's weight. A bias is one row, but where it is shared out one column."""
    weight = held(group.weight)
    if weight.dim() == 1:
        weight = weight[:, None] if isinstance(group.weight, DTensor) else weight[None]
    return Matrix(weight, k, group.min_alive, group.by_column)


def _project_on_gpu(matrices: Sequence[Matrix]) -> None:
    try:
        from sparse_model.kernels.selection import project_matrices
    except ImportError:  # not every build of torch for GPUs comes with triton
        shard_projection.project_whole(matrices)
    else:
        project_matrices(matrices)


def count_nonzero(groups: list[Group]) -> int:
    """L0: nonzeros over all projected tensors, of all workers where they are sharded. Waits for the device, once."""
    sharded = any(isinstance(group.weight, DTensor) for group in groups)
    nonzeros = torch.stack([held(group.weight).count_nonzero() for group in groups]).sum()
    return int(summed(nonzeros) if sharded else nonzeros)
