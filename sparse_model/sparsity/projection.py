"""Weight sparsity (METHOD 3): which weights are under a budget, the projection onto it, and the L0 anneal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_model.errors import InputError
from sparse_model.model.config import ModelConfig, TrainConfig
from sparse_model.model.transformer import SparseTransformer
from sparse_model.sparsity.cpu_projection import Matrix, project_matrices

NEVER_PROJECTED = ("bigram", "sink", "gain", "offset")
EMBEDDINGS = ("embedding", "unembedding")
KEPT_FIRST, ZERO = torch.iinfo(torch.int32).min, -1
"""A rank before that of any weight, and that of a weight of zero."""


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
    """Refuse a recipe whose minimum alive exceeds the whole budget of a matrix (METHOD 3, known trap)."""
    with torch.device("meta"):
        groups = projected_groups(SparseTransformer(model), recipe)
    for group in groups:
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
def project(groups: list[Group], progress: float) -> None:
    """Zero, in place, all but the budgeted largest magnitudes of every group."""
    cut = [(group, group.budget(progress)) for group in groups if group.fraction < 1]
    cut = [(group, k) for group, k in cut if k < group.weight.numel()]
    on_gpu = [(group, k) for group, k in cut if group.weight.is_cuda]
    on_cpu = [_matrix(group, k) for group, k in cut if not group.weight.is_cuda]
    if on_cpu:
        # torch's own threads keep their cores busy for a while after every operation
        project_matrices(on_cpu, max(1, torch.get_num_threads() // 2))
    if on_gpu:
        _project_on_gpu(on_gpu)


def _matrix(group: Group, k: int) -> Matrix:
    bits = group.weight.detach().view(torch.int32).numpy()
    return Matrix(bits if bits.ndim == 2 else bits[None], k, group.min_alive, group.by_column)


def _project_on_gpu(cut: list[tuple[Group, int]]) -> None:
    from sparse_model.kernels.selection import project_matrices  # triton comes with torch's GPU builds only

    weights = [group.weight.detach() for group, _ in cut]
    project_matrices(
        [
            (weight if weight.dim() == 2 else weight[None], k, group.min_alive, group.by_column)
            for weight, (group, k) in zip(weights, cut, strict=True)
        ]
    )


def project_by_selection(cut: list[tuple[Group, int]]) -> None:
    """`project` for groups with their budgets in a few operations of a GPU each, and one question to it in all."""
    found = [_selected(group, k) for group, k in cut]
    # Every question waits for what was queued before it.
    exact = torch.stack([is_exact for _, is_exact in found]).tolist()
    for (mask, _), is_exact, (group, k) in zip(found, exact, cut, strict=True):
        keep = mask if is_exact else keep_mask(group.weight, k, group.min_alive, group.by_column)
        bits = group.weight.view(torch.int32)  # a mask of integers costs a fraction of a boolean one's product
        bits.bitwise_and_(keep.view(torch.int8).neg_())


def _selected(group: Group, k: int) -> tuple[Tensor, Tensor]:
    """A mask, and whether it leaves of the weights what `keep_mask` does: where others than zeros tie it may not."""
    rank = _descending_rank(group.weight)
    alive, exact = torch.zeros_like(rank, dtype=torch.bool), torch.ones((), dtype=torch.bool, device=rank.device)
    if group.min_alive:
        axis = 0 if group.by_column else 1
        alive = rank <= rank.topk(group.min_alive, dim=axis, largest=False, sorted=False).values.amax(axis, True)
        exact = ((alive & (rank < ZERO)).sum(axis) <= group.min_alive).all()
        k -= group.min_alive * rank.shape[1 - axis]
        rank = rank.masked_fill(alive, 0)  # behind all others
    if k == 0:
        return alive, exact
    last = _kth_smallest(rank, k)
    chosen = rank <= last
    return alive | chosen, exact & ((chosen.count_nonzero() == k) | (last >= ZERO))


def keep_mask(weight: Tensor, k: int, min_alive: int = 0, by_column: bool = False) -> Tensor:
    """Boolean mask of exactly k entries: the largest magnitudes, and of each row at least its `min_alive` largest.

    weight is float32, of one or two dimensions; with `by_column` the minimum holds for columns. Ties go to the lower
    index in row-major order, so the same weights always give the same mask.
    """
    if k >= weight.numel():
        return torch.ones_like(weight, dtype=torch.bool)
    rank = _descending_rank(weight)
    if min_alive:
        lanes = rank.T if by_column else rank
        lanes.scatter_(1, lanes.sort(dim=1, stable=True).indices[:, :min_alive], KEPT_FIRST)
    last = _kth_smallest(rank, k)
    keep = rank <= last
    surplus = int(keep.count_nonzero()) - k
    if surplus > 0:
        tied = (rank == last).flatten().nonzero().flatten()
        keep.view(-1)[tied[-surplus:]] = False
    return keep


def _descending_rank(weight: Tensor) -> Tensor:
    """Integers below 0, the smaller the larger the magnitude: those of floats order as their bits do."""
    return (weight.contiguous().view(torch.int32) & torch.iinfo(torch.int32).max).bitwise_not_()


def _kth_smallest(rank: Tensor, k: int) -> Tensor:
    return rank.flatten().topk(k, largest=False, sorted=False).values.amax()  # kthvalue runs on one multiprocessor


def count_nonzero(groups: list[Group]) -> int:
    """L0: nonzeros over all projected tensors."""
    return sum(int(group.weight.count_nonzero()) for group in groups)
