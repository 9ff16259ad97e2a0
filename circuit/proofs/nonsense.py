"""Two controls: circuits for consistent nonsense, and circuits of a model with its weights shuffled (METHOD 11).

Nonsense keeps a task's cue and replaces its answers by other tokens of like frequency, the same one for each answer
throughout. A search that finds a small circuit for it would find one for anything. It is given the very prompts,
configuration and budget of the real search.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from circuit.ablated.ablation import mean_activations
from circuit.search.config import Method, PruneConfig
from circuit.search.discretise import bisect_nodes
from circuit.search.evaluation import Judge
from circuit.search.exploration import explore
from circuit.search.masks import learn_masks
from circuit.search.subsets import Subsets
from circuit.search.targets import Solution, combine, edge_circuits, held_in_subsets, minimise, smallest
from circuit.tasks import PairBatch
from sparse_model.model.transformer import SparseTransformer

PAIRS_OF_TOKENS = 5
"""How many times answers are replaced."""

NEIGHBOURS = 50
"""Tokens nearest in frequency to an answer, of which one replaces it."""


def nonsense(data: PairBatch, text: Tensor, vocab_size: int, seed: int) -> PairBatch:
    """The same prompts with other answers: each answer token is one other token throughout.

    Drawn among the `NEIGHBOURS` tokens whose frequency in `text` (n, T) is nearest to the answer's, no answer of the
    task among them, and no token twice.
    """
    counts = torch.bincount(text.flatten().cpu(), minlength=vocab_size).double()
    generator = torch.Generator().manual_seed(seed)
    answers = torch.unique(torch.cat([data.right, data.wrong])).cpu()
    taken = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, answers, True)
    other = torch.arange(vocab_size)
    for answer in answers.tolist():
        distance = (counts.log1p() - counts[answer].log1p()).abs().masked_fill(taken, torch.inf)
        near = distance.argsort(stable=True)[: min(NEIGHBOURS, int((~taken).sum()))]
        other[answer] = near[int(torch.randint(len(near), (1,), generator=generator))]
        taken[other[answer]] = True
    other = other.to(data.right.device)
    return replace(data, right=other[data.right], wrong=other[data.wrong])


def shuffled_weights(model: SparseTransformer, seed: int) -> SparseTransformer:
    """A copy in which the entries of every matrix are in random order: as many nonzero weights, of the same sizes."""
    copied = deepcopy(model).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for _, weight in sorted(copied.named_parameters()):
        if weight.dim() >= 2:
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.data = weight.data.flatten()[order].view_as(weight)
    return copied


def control_edges(judge: Judge, config: PruneConfig, method: Method) -> int | None:
    """Edges of the smallest circuit that the search finds for what a judge judges by; None where it finds none.

    Unlike a search for the circuit of a task it goes on where the whole model misses the target: masks may reach it.
    """
    target, found, everything = config.target_loss, list[Solution](), judge.everything()
    faithful = method == "faithful"

    def search(start: PruneConfig) -> float:
        start = start.against("subsets" if faithful else "all")
        subsets = Subsets(judge, start.seed, target) if faithful else None
        reaches = subsets.reached if subsets else judge.at(target)
        tau = learn_masks(judge.model, judge.data, judge.means, start, reaches, everything, judge.watch)
        nodes = bisect_nodes(judge, tau, target)
        if nodes is not None and subsets:
            found.append(held_in_subsets(subsets, tau > 0 if judge.at(target)(tau > 0) else nodes, everything, start))
        elif nodes is not None:
            found.append(minimise(judge, nodes, start, target))
        return float(judge.calibrated(tau > 0)[0])

    explore(config, search)
    if not found:
        return None
    best = smallest(found) if faithful else combine(judge, found, config, target)
    return edge_circuits(judge, {target: best}, config)[target].size[0] if method == "edge" else best.size[0]


def nonsense_edges(judge: Judge, config: PruneConfig, method: Method, text: Tensor) -> list[int | None]:
    """Of the same search for each of `PAIRS_OF_TOKENS` kinds of nonsense."""
    vocab, found = judge.model.config.vocab_size, []
    for i in range(PAIRS_OF_TOKENS):
        data = nonsense(judge.data, text, vocab, (config.seed + i) % 2**64)
        found.append(control_edges(Judge(judge.model, judge.means, data, judge.watch), config, method))
    return found


def shuffled_edges(judge: Judge, config: PruneConfig, method: Method, text: Tensor) -> int | None:
    """Of the same search for the task itself, on the model with its weights shuffled."""
    model = shuffled_weights(judge.model, config.seed)
    means = mean_activations(model, torch.split(text, 32))
    return control_edges(Judge(model, means, judge.data, judge.watch), config, method)
