"""A transformer with a story planted by hand, whose tokens are hostile, shared by the tests of this folder.

The story: the question token at the end attends to the one token that bears the mark, by query and key channel 0 of
head 0 in layer 0, and fetches its sign through value channel 1 to residual channel 5. In layer 1 neuron 3 fires where
that is positive and writes to residual channel 7, which raises the answer YES; NO wins otherwise, by its bias.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from circuit.proofs.faithfulness import necessity
from torch import Tensor

from circuit.ablated.ablation import mean_activations
from circuit.graph.edges import edges_between
from circuit.graph.record import Circuit, decimal_means
from circuit.pruning import find_circuit
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.tasks import PairBatch, TaskData
from sparse_model.model.config import ModelConfig
from sparse_model.model.transformer import SparseTransformer

HOSTILE = ("</script><img src=x onerror=hacked=1>", "\u202eevil\u200b", "a\x00b\n", "w" * 10_000)
TEXTS = ("plus", "minus", "PLUS!", "MINUS!", "?", *HOSTILE, "[]", "YES", "NO")
DECOYS, CUES, QUESTION, FILLERS, ANSWERS = (0, 1), (2, 3), 4, (5, 6, 7, 8, 9), (10, 11)
SIGN, MARK, ASK, FOUND, VERDICT = 0, 1, 2, 5, 7
"""Residual channels of the story."""
NODES = {
    "layers.0.attn.in": (SIGN, MARK, ASK),
    "layers.0.attn.q": (0,),
    "layers.0.attn.k": (0,),
    "layers.0.attn.v": (1,),
    "layers.0.attn.out": (FOUND,),
    "layers.1.mlp.in": (FOUND,),
    "layers.1.mlp.act": (3,),
    "layers.1.mlp.out": (VERDICT,),
    "final.in": (VERDICT,),
}


class Tokens:
    """A tokenizer as far as pages need one."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(TEXTS[i] for i in ids)


class Story(NamedTuple):
    model: SparseTransformer
    task: TaskData
    text: Tensor
    circuit: Circuit


def model() -> SparseTransformer:
    """Two layers, width 16, heads of 4. All that is not of the story is random and stays off its channels."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=12, context=24, n_layer=2, d_model=16, d_head=4, activation_fraction=1, bigram=False
    )
    made = SparseTransformer(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.2))
        own = [SIGN, MARK, ASK, FOUND, VERDICT]
        for layer in made.layers:
            for weight in (layer.attn.out, layer.mlp.down):
                weight.weight[own] = 0
                weight.bias[own] = 0
        made.embedding[:, own] = 0
        made.embedding[[DECOYS[0], CUES[0]], SIGN] = 1.0
        made.embedding[[DECOYS[1], CUES[1]], SIGN] = -1.0
        made.embedding[list(CUES), MARK] = 1.0
        made.embedding[:, ASK] = -1.0
        made.embedding[QUESTION, ASK] = 1.0
        _plant(made)
    return made


def _plant(made: SparseTransformer) -> None:
    attention, mlp, D = made.layers[0].attn, made.layers[1].mlp, 16
    for start in (0, D, 2 * D):
        attention.qkv.weight[start : start + 4] = 0
        attention.qkv.bias[start : start + 4] = 0
    attention.out.weight[:, :4] = 0
    attention.qkv.weight[0, ASK] = 6.0
    attention.qkv.weight[D, MARK] = 6.0
    attention.qkv.weight[2 * D + 1, SIGN] = 3.0
    attention.out.weight[FOUND, 1] = 3.0
    mlp.up.weight[3] = 0
    mlp.up.bias[3] = 0
    mlp.up.weight[3, FOUND] = 2.0
    mlp.down.weight[VERDICT, 3] = 6.0
    made.unembedding[list(ANSWERS)] = 0
    made.unembedding[ANSWERS[0], VERDICT], made.unembedding[ANSWERS[1], VERDICT] = 1.5, -1.5
    made.unembedding_bias.zero_()
    made.unembedding_bias[ANSWERS[1]] = 4.0


def prompts(n_pairs: int, seed: int) -> PairBatch:
    """Prompts of 8 to 12 tokens: decoys of random sign, one cue, fillers, the question."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n_pairs):
        body = [rng.choice(rng.choice((DECOYS, FILLERS))) for _ in range(rng.randint(7, 11))]
        place = rng.randrange(len(body))
        rows += [[*body[:place], cue, *body[place + 1 :], QUESTION] for cue in CUES]
    longest = max(map(len, rows))
    return PairBatch(
        tokens=torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows]),
        length=torch.tensor([len(row) for row in rows]),
        right=torch.tensor(ANSWERS * n_pairs),
        wrong=torch.tensor(ANSWERS[::-1] * n_pairs),
    )


def story() -> Story:
    """The model, its prompts, some text, and the circuit of the story."""
    made = model()
    task = TaskData("</script>story", train=prompts(40, 0), heldout=prompts(40, 1))
    text = torch.randint(0, 10, (24, 24), generator=torch.Generator().manual_seed(5))
    return Story(made, task, text, record(made, task, text, NODES))


def record(made: SparseTransformer, task: TaskData, text: Tensor, nodes: Mapping[str, tuple[int, ...]]) -> Circuit:
    """The circuit of given nodes, whether it does the task or not."""
    means = mean_activations(made, [text])
    config = PruneConfig.model_validate({"steps": 2, "eliminate": False})
    searched = find_circuit(made, task, means, config, text=text)
    train, heldout = (Judge(made, means, data) for data in (task.train, task.heldout))
    keep = train.index.flat({site: list(channels) for site, channels in nodes.items()})
    edges = edges_between(made, train.index.channels(keep))
    loss, calibration = train.calibrated(keep)
    score = heldout.score(keep, calibration)
    planted = {
        "task": task.name, "nodes": nodes, "edges": tuple(edges), "n_nodes": int(keep.sum()), "n_edges": len(edges),
        "loss": loss, "heldout_loss": score.loss, "heldout_accuracy": score.accuracy, "scale": calibration.scale,
        "shift": calibration.shift, "necessity_loss": necessity(heldout, keep), "status": "ok",
        "means": decimal_means(means),
    }  # fmt: skip
    return changed_to(searched, planted)


def changed_to(circuit: Circuit, changes: Mapping[str, Any]) -> Circuit:
    """A circuit with other fields, checked; without those that a record has no more."""
    return Circuit.model_validate(
        circuit.model_dump() | {k: v for k, v in changes.items() if k in Circuit.model_fields}
    )
