"""A transformer with a story planted by hand, whose tokens are hostile, shared by the tests of this folder.

The story: the question token at the end attends to the one token that bears the mark, by query and key channel 0 of
head 0 in layer 0, and fetches its sign through value channel 1 to residual channel 5. In layer 1 neuron 3 fires where
that is positive and writes to residual channel 7, which raises the answer YES; NO wins otherwise, by its bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from planting import ANSWERS, ASK, MARK, READ, SIGN, cued_prompts, model_with_head, write_answer
from torch import Tensor

from circuit.ablated.ablation import mean_activations
from circuit.graph.edges import edges_between
from circuit.graph.record import Circuit, decimal_means
from circuit.proofs.prove import Ground, prove, with_proofs
from circuit.pruning import find_circuit
from circuit.search.config import PruneConfig
from circuit.search.evaluation import Judge
from circuit.tasks import TaskData
from sparse_model.model.transformer import SparseTransformer

HOSTILE = ("</script><img src=x onerror=hacked=1>", "\u202eevil\u200b", "a\x00b\n", "w" * 10_000)
TEXTS = ("plus", "minus", "PLUS!", "MINUS!", "?", *HOSTILE, "[]", "YES", "NO")
VERDICT = 7
"""The residual channel that the neuron writes to."""
NODES = {
    "layers.0.attn.in": (SIGN, MARK, ASK),
    "layers.0.attn.q": (0,),
    "layers.0.attn.k": (0,),
    "layers.0.attn.v": (1,),
    "layers.0.attn.out": (READ,),
    "layers.1.mlp.in": (READ,),
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
    made = model_with_head(0.2, layer=0, own=(SIGN, MARK, ASK, READ, VERDICT))
    write_answer(made, VERDICT, 1.5)
    mlp = made.layers[1].mlp
    with torch.no_grad():
        mlp.up.weight[3] = 0
        mlp.up.bias[3] = 0
        mlp.up.weight[3, READ] = 2.0
        mlp.down.weight[VERDICT, 3] = 6.0
        made.unembedding_bias[ANSWERS[1]] = 4.0
    return made


def story() -> Story:
    """The model, its prompts, some text, and the circuit of the story."""
    made = model()
    task = TaskData("</script>story", train=cued_prompts(40, 0, 7, 11), heldout=cued_prompts(40, 1, 7, 11))
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
        "shift": calibration.shift, "status": "ok", "means": decimal_means(means),
    }  # fmt: skip
    circuit = changed_to(searched, planted)
    return with_proofs(circuit, prove(Ground(made, task, means, config, text), circuit, "basic"))


def changed_to(circuit: Circuit, changes: Mapping[str, Any]) -> Circuit:
    """A circuit with other fields, checked; without those that a record has no more."""
    return Circuit.model_validate(
        circuit.model_dump() | {k: v for k, v in changes.items() if k in Circuit.model_fields}
    )
