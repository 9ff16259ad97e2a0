"""How often prompts written from a circuit alone make the whole model answer wrongly; beside them, controls.

    python benchmarks/stories.py docs/stories/model
    python benchmarks/stories.py docs/stories/model --nodes

Prompts and circuits lie in docs/stories. docs/stories.md tells how the prompts were written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from circuit import Circuit, CircuitModel, effects, nodes_of, task_data
from circuit.inspect.activity import activations
from sparse_model import from_pretrained
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer

FOLDER = Path(__file__).parents[1] / "docs" / "stories"
TASKS = ("bracket_counting", "set_or_string_fixedvarname", "single_double_quote")
PAIRS, SEEN, ENDS = 64, 8, 5
"""Held-out pairs for `--nodes`; how often a token has to be there to be told; how many at each end are told."""


class Prompt(NamedTuple):
    """A line of docs/stories/<task>.jsonl; `why` names the nodes it is aimed at."""

    prompt: str
    right: str
    wrong: str
    why: str
    control: bool


class Hits(NamedTuple):
    """Prompts after which the wrong answer has the higher logit: in the whole model, and in the circuit."""

    task: str
    control: bool
    prompts: int
    model: int
    circuit: int

    def __str__(self) -> str:
        kind = "control" if self.control else "adversarial"
        return f"{self.task:28}{kind:13}{self.prompts:7}{self.model:13}{self.circuit:9}"


def prompts_of(task: str) -> list[Prompt]:
    return [Prompt(**json.loads(line)) for line in (FOLDER / f"{task}.jsonl").read_text().splitlines()]


def only_token(tokenizer: Tokenizer, text: str) -> int:
    """The one token that a text is; ValueError where it is several."""
    (token,) = tokenizer.encode(text)
    return token


@torch.no_grad()
def margins(
    model: SparseTransformer, tokenizer: Tokenizer, running: CircuitModel, prompt: Prompt
) -> tuple[float, float]:
    """logit(right) - logit(wrong): of the whole model, and of the circuit, calibrated."""
    tokens = torch.tensor([tokenizer.encode(prompt.prompt)])
    right, wrong = (only_token(tokenizer, text) for text in (prompt.right, prompt.wrong))
    logits = model(tokens)[0, -1]
    return float(logits[right] - logits[wrong]), float(running(tokens, torch.tensor([right]), torch.tensor([wrong])))


def hits(model: SparseTransformer, tokenizer: Tokenizer, task: str) -> list[Hits]:
    running = CircuitModel(model, Circuit.load(FOLDER / f"{task}.json"))
    found = []
    for control in (False, True):
        prompts = [prompt for prompt in prompts_of(task) if prompt.control == control]
        pairs = [margins(model, tokenizer, running, prompt) for prompt in prompts]
        whole, alone = (sum(margin < 0 for margin in side) for side in zip(*pairs, strict=True))
        found.append(Hits(task, control, len(prompts), whole, alone))
    return found


def nodes_told(model: SparseTransformer, tokenizer: Tokenizer, task: str) -> Iterator[str]:
    """Of each node: the circuit's loss on held-out prompts without it, and the tokens where it is lowest and highest.

    Values are of the whole model, means over the places of a token; tokens of fewer than `SEEN` places are left out.
    """
    circuit = Circuit.load(FOLDER / f"{task}.json")
    heldout = task_data(task, tokenizer, pairs=PAIRS, seed=0).heldout
    without = effects(model, circuit, heldout)
    nodes = nodes_of(circuit)
    values = activations(model, nodes, heldout.tokens)
    inside = torch.arange(heldout.tokens.shape[1]) < heldout.length[:, None]
    tokens = (heldout.tokens[inside].bincount() >= SEEN).nonzero().flatten()
    for place, node in enumerate(nodes):
        at = values[..., place]
        means = torch.stack([at[inside & (heldout.tokens == token)].mean() for token in tokens])
        order = means.argsort().tolist()
        ends = order[:ENDS] + order[-ENDS:]
        told = "  ".join(f"{tokenizer.decode([int(tokens[i])])!r} {float(means[i]):.1f}" for i in ends)
        effect = without[node.name]
        yield f"{node.name:22}{effect.before:7.3f}{effect.after:7.3f}  {told}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the model that the circuits are of")
    parser.add_argument("--prompts", action="store_true", help="print every prompt with its two margins")
    parser.add_argument("--nodes", action="store_true", help="print what every node does on the task's prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = from_pretrained(arguments.model)
    print(f"{'task':28}{'prompts':13}{'number':>7}{'model wrong':>13}{'circuit':>9}")
    for task in TASKS:
        for row in hits(model, tokenizer, task):
            print(row)
        if arguments.nodes:
            print(*nodes_told(model, tokenizer, task), sep="\n")
        if arguments.prompts:
            running = CircuitModel(model, Circuit.load(FOLDER / f"{task}.json"))
            for prompt in prompts_of(task):
                whole, alone = margins(model, tokenizer, running, prompt)
                print(f"{whole:8.2f}{alone:9.2f}  {prompt.prompt!r}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"stories: {error}", file=sys.stderr)
        sys.exit(2)
