"""How often prompts written from a circuit alone make the whole model answer wrongly; beside them, controls.

    python benchmarks/stories.py docs/stories/first
    python benchmarks/stories.py docs/stories/best --nodes

A folder of docs/stories holds a model, its circuits and their prompts. docs/stories.md tells how these were written.
"""

from __future__ import annotations

import argparse
import builtins
import json
import keyword
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from circuit import Circuit, CircuitModel, effects, nodes_of, task_data
from circuit.ablated.compact import layers_of
from circuit.ablated.nodes import NodeIndex
from circuit.inspect.activity import activations
from sparse_model import from_pretrained
from sparse_model.data.tokenizer import Tokenizer
from sparse_model.errors import InputError
from sparse_model.model.transformer import SparseTransformer

FOLDER = Path(__file__).parents[1] / "docs" / "stories"
STORIES = ("first", "best")
TASKS = ("bracket_counting", "set_or_string_fixedvarname", "single_double_quote")
AIMED_AT = re.compile(r"\.(attn\.(in|q|k|v)|mlp\.(in|act))\.")
"""Nodes that controls are aimed at: what reads."""
WORD = re.compile(r" [a-z]{3,}")
PAIRS, SEEN, ENDS = 64, 8, 5
"""Held-out pairs for `--nodes`; how often a token has to be there to be told; how many at each end are told."""


class Prompt(NamedTuple):
    """A line of docs/stories/<story>/<task>.jsonl; `why` names the nodes it is aimed at, `odd` are the lines of it that
    the circuit should stumble over, where they are told."""

    prompt: str
    right: str
    wrong: str
    why: str
    control: bool
    odd: str = ""


class Hits(NamedTuple):
    """Prompts after which the wrong answer has the higher logit: in the whole model, and in the circuit."""

    task: str
    kind: str
    prompts: int
    model: int
    circuit: int

    def __str__(self) -> str:
        return f"{self.task:28}{self.kind:13}{self.prompts:7}{self.model:13}{self.circuit:9}"


def prompts_of(story: Path, task: str) -> list[Prompt]:
    return [Prompt(**json.loads(line)) for line in (story / f"{task}.jsonl").read_text().splitlines()]


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


def hits(model: SparseTransformer, tokenizer: Tokenizer, story: Path, task: str) -> list[Hits]:
    """Of adversarial prompts and controls, and of the prompts that were written from the other story's circuit."""
    running = CircuitModel(model, Circuit.load(story / f"{task}.json"))
    own = prompts_of(story, task)
    others = [prompt for name in STORIES if name != story.name for prompt in prompts_of(FOLDER / name, task)]
    kinds = {
        "adversarial": [prompt for prompt in own if not prompt.control],
        "control": [prompt for prompt in own if prompt.control],
        "the other's": [prompt for prompt in others if not prompt.control],
    }
    found = []
    for kind, prompts in kinds.items():
        pairs = [margins(model, tokenizer, running, prompt) for prompt in prompts]
        whole, alone = (sum(margin < 0 for margin in side) for side in zip(*pairs, strict=True))
        found.append(Hits(task, kind, len(prompts), whole, alone))
    return found


def controls(model: SparseTransformer, tokenizer: Tokenizer, story: Path, task: str) -> list[Prompt]:
    """For every adversarial prompt one whose odd lines are aimed at a random node outside the circuit in their place:
    assignments of the three words that weigh most in it, read straight from the embedding."""
    index, generator = NodeIndex(model), torch.Generator().manual_seed(0)
    inside = {node.name for node in nodes_of(Circuit.load(story / f"{task}.json"))}
    every = (f"{site}.{channel}" for site, width in index.widths.items() for channel in range(width))
    free = [name for name in every if name not in inside and AIMED_AT.search(name)]
    words = [token for token in range(tokenizer.vocab_size) if is_a_name(tokenizer.decode([token]))]
    found = []
    for prompt in prompts_of(story, task):
        if prompt.control:
            continue
        if not prompt.odd or prompt.prompt.count(prompt.odd) != 1:
            raise InputError(f"{story.name}, {task}: {prompt.prompt!r} does not say once which lines of it are odd")
        name = free[int(torch.randint(len(free), (1,), generator=generator))]
        weights = read_from_embedding(model, name)[words].abs()
        best = [tokenizer.decode([words[i]]).strip() for i in weights.topk(3).indices.tolist()]
        indent = prompt.odd[: len(prompt.odd) - len(prompt.odd.lstrip())]
        count = prompt.odd.count("\n")
        odd = "".join(f"{indent}{best[i % 3]} = {best[(i + 1) % 3]}\n" for i in range(count))
        why = f"{name}: the words it reads most"
        text = prompt.prompt.replace(prompt.odd, odd)
        found.append(prompt._replace(prompt=text, why=why, control=True, odd=odd))
    return found


def is_a_name(text: str) -> bool:
    """Whether a token is a word that Python has no use of its own for."""
    return bool(WORD.fullmatch(text)) and not keyword.iskeyword(text.strip()) and text.strip() not in dir(builtins)


def read_from_embedding(model: SparseTransformer, name: str) -> Tensor:
    """(V,) what each token's embedding adds to a node, without norms, attention or activation function."""
    _, layer, site, kind, channel = name.split(".")
    block, embedding = layers_of(model)[int(layer)], model.embedding.detach()
    if kind == "in":
        return embedding[:, int(channel)]
    if site == "mlp":
        return embedding @ block.mlp.up.weight.detach()[int(channel)]
    return embedding @ block.attn.qkv.weight.detach()["qkv".index(kind) * model.config.d_attn + int(channel)]


def nodes_told(model: SparseTransformer, tokenizer: Tokenizer, story: Path, task: str) -> Iterator[str]:
    """Of each node: the circuit's loss on held-out prompts without it, and the tokens where it is lowest and highest.

    Values are of the whole model, means over the places of a token; tokens of fewer than `SEEN` places are left out.
    """
    circuit = Circuit.load(story / f"{task}.json")
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
    parser.add_argument("story", type=Path, help="folder of a model, its circuits and prompts")
    parser.add_argument("--prompts", action="store_true", help="print every prompt with its two margins")
    parser.add_argument("--nodes", action="store_true", help="print what every node does on the task's prompts")
    parser.add_argument("--controls", action="store_true", help="print the controls, as they are made, only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    story: Path = arguments.story
    model, tokenizer = from_pretrained(str(story / "model"))
    if arguments.controls:
        for task in TASKS:
            print(*(json.dumps(prompt._asdict()) for prompt in controls(model, tokenizer, story, task)), sep="\n")
        return
    print(f"{'task':28}{'prompts':13}{'number':>7}{'model wrong':>13}{'circuit':>9}")
    for task in TASKS:
        for row in hits(model, tokenizer, story, task):
            print(row)
        if arguments.nodes:
            print(*nodes_told(model, tokenizer, story, task), sep="\n")
        if arguments.prompts:
            running = CircuitModel(model, Circuit.load(story / f"{task}.json"))
            for prompt in prompts_of(story, task):
                whole, alone = margins(model, tokenizer, running, prompt)
                print(f"{whole:8.2f}{alone:9.2f}  {prompt.prompt!r}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"stories: {error}", file=sys.stderr)
        sys.exit(2)
