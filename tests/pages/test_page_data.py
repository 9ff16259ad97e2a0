"""What a circuit's page says, against other ways to compute it; hostile input; notes."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from planting import ANSWERS, CUES, QUESTION
from pydantic import Field

from circuit.graph.edges import matrices
from circuit.graph.record import Circuit, Edge
from circuit.inspect.binarise import binarise
from circuit.inspect.contexts import contexts
from circuit.inspect.running import CircuitModel, changed, effects, nodes_of
from circuit.inspect.runs import seen_on
from circuit.pages import Notes
from circuit.pages.head import loss_curves, losses, proofs
from circuit.pages.shown import visible
from circuit.tasks import TaskData
from pages.stories import HOSTILE, Story, Tokens
from sparse_model.errors import InputError
from sparse_model.model.config import Config

CLOSE = {"rel": 2e-4, "abs": 1e-5}


def of(told: Story, data: dict[str, Any], name: str) -> int:
    return [f"{site}.{channel}" for site, channel, _, _ in data["graph"]["nodes"]].index(name)


def unpacked(text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), "<i2") / 32767


def test_ten_figures_of_a_page_are_those_of_model_and_circuit(told: Story, told_page: Any) -> None:
    """Losses, effects of a node and an edge, dose, step, context, value in circuit and model, margins, weights."""
    data, (model, task, text, circuit) = told_page.data, told
    name = "layers.0.attn.v.1"
    i = of(told, data, name)
    shown = {key: value for key, value, _ in data["head"]["losses"]}
    running = CircuitModel(model, circuit)
    assert shown["heldout accuracy"] == pytest.approx(running.score(task.heldout).accuracy, **CLOSE)
    assert shown["loss"] == pytest.approx(running.score(task.train).loss, **CLOSE)
    found = effects(model, circuit, task.heldout)
    before = data["ablations"]["before"][0]
    assert data["ablations"]["nodes"][i][0] + before == pytest.approx(found[name].after, **CLOSE)
    edge = next(e for e in circuit.edges if e.target.name == name)
    assert data["ablations"]["edges"][circuit.edges.index(edge)][0] + before == pytest.approx(
        found[edge.name].after, **CLOSE
    )
    few = task.heldout.first(32)
    dose = data["nodes"][i]["dose"]
    held = changed(model, circuit, few, {name: dose["grid"][2]})
    assert dose["loss"][2] == pytest.approx(held.after, **CLOSE)
    binary = binarise(model, circuit, TaskData(task.name, task.train.first(16), task.heldout.first(16)))
    step = data["ablations"]["steps"]["nodes"][str(i)]
    assert step[:3] == pytest.approx(list(binary.steps[nodes_of(circuit)[i]]), **CLOSE)
    top = next(one for one in data["nodes"][i]["text"]["passages"] if one[0] == "top")
    assert top[1] == pytest.approx(
        contexts(model, [nodes_of(circuit)[i]], text)[nodes_of(circuit)[i]].top[0].value, **CLOSE
    )
    margins = running.margins(task.heldout)
    assert sorted(row["margin"] for row in data["prompts"]["rows"])[0] == pytest.approx(float(margins.min()), **CLOSE)
    weights = {(layer, m, t): w for layer, m, _, t, w in matrices(model)}
    into = weights[0, "qkv", "layers.0.attn.v"][1].count_nonzero()
    assert data["graph"]["weights"][i][0] == int(into)


def test_heat_maps_hold_the_values_of_both_runs(told: Story, told_page: Any) -> None:
    data, prompts = told_page.data, told_page.data["prompts"]
    row = prompts["rows"][0]
    tokens = [data["tokens"][token] for token in row["tokens"]]
    texts = [visible(text) for text in Tokens().decode([0]).split()] and [
        visible(Tokens().decode([i])) for i in range(12)
    ]
    ids = torch.tensor([[texts.index(text) for text in tokens]])
    name = "layers.0.attn.v.1"
    i, n = of(told, data, name), len(tokens)
    whole = told.model.capture(ids, ["layers.0.attn.v"])["layers.0.attn.v"][0, :, 1]
    shown = unpacked(prompts["model"])[: n * told.circuit.n_nodes].reshape(n, -1)[:, i] * prompts["scales"][i]
    assert shown == pytest.approx(whole.numpy(), abs=1e-3 * prompts["scales"][i])
    seen: dict[str, torch.Tensor] = {}

    def look(site: str, channels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        for at, channel in enumerate(channels.tolist()):
            seen[f"{site}.{channel}"] = x[0, :, at]
        return x

    CircuitModel(told.model, told.circuit, visit=look)(ids, torch.tensor([ANSWERS[0]]), torch.tensor([ANSWERS[1]]))
    shown = unpacked(prompts["circuit"])[: n * told.circuit.n_nodes].reshape(n, -1)[:, i] * prompts["scales"][i]
    assert shown == pytest.approx(seen[name].numpy(), abs=1e-3 * prompts["scales"][i])


def test_the_circuit_run_obeys_removed_edges(told: Story) -> None:
    """The forward pass with hooks is the compacted one, also where edges are removed."""
    lost: Edge = next(edge for edge in told.circuit.edges if edge.matrix == "qkv" and edge.target.site.endswith("v"))
    left = tuple(edge for edge in told.circuit.edges if edge != lost)
    cut = Circuit.model_validate(told.circuit.model_dump() | {"edges": left, "n_edges": len(left), "method": "edge"})
    for circuit in (told.circuit, cut):
        raw = seen_on(told.model, circuit, told.task.heldout, whole=False).margins
        sides = torch.where(told.task.heldout.right < told.task.heldout.wrong, 1.0, -1.0)
        expected = CircuitModel(told.model, circuit).margins(told.task.heldout)
        assert torch.allclose(circuit.scale * raw + circuit.shift * sides, expected, atol=1e-3)


def test_attention_of_the_planted_head_is_all_on_the_cue(told_page: Any) -> None:
    (head,) = told_page.data["attention"]["heads"]
    assert (head["layer"], head["head"], head["kept"]) == (0, 0, {"q": [0], "k": [0], "v": [1]})
    for run in head["runs"].values():
        assert run["cue"] > 0.99
        assert run["channel_shares"][0][0] == 0
        assert run["channel_shares"][0][1] == pytest.approx(1, abs=0.05)


def test_the_story_is_in_the_words_of_its_nodes(told: Story, told_page: Any) -> None:
    names = [f"{site}.{channel}" for site, channel, _, _ in told_page.data["graph"]["nodes"]]
    words = dict(zip(names, (found["words"] for found in told_page.data["nodes"]), strict=True))
    assert words["layers.0.attn.q.0"][0].startswith("constant query")
    assert any(said.startswith("marks the cue") for said in words["layers.0.attn.k.0"])
    assert any(said.startswith("tells A from B at the cue") for said in words["layers.0.attn.v.1"])
    assert any(said.startswith("tells A from B at the answer") for said in words["layers.0.attn.out.5"])
    assert words["layers.1.mlp.act.3"] == ["tells A from B at the answer: +7.99 on A and +0.00 on B"]


def test_tokens_below_the_graph_begin_with_the_cue(told_page: Any) -> None:
    data = told_page.data
    cue = {data["tokens"][token] for token, _, _, marked in data["graph"]["tokens"] if marked}
    assert cue == {visible(Tokens().decode([token])) for token in CUES}
    assert visible(Tokens().decode([QUESTION])) in {data["tokens"][token] for token, _, _, _ in data["graph"]["tokens"]}


def test_failures_come_first(told: Story) -> None:
    failing = told.circuit.model_copy(update={"heldout_loss": 5.0})
    assert [passed for _, passed, _ in proofs(failing)][:1] == [False]


def test_losses_of_records_in_a_record_show_by_themselves(told: Story) -> None:
    class Inner(Config):
        subset_worst_loss: float = Field(0.4, description="in the worst of them")
        subset_losses: dict[float, float] = Field({0.5: 0.3}, description="by share")

    class Outer(Circuit):
        inner: Inner = Inner()

    outer: Any = Outer.model_validate(told.circuit.model_dump())
    assert ["subset worst loss", 0.4, "in the worst of them"] in losses(outer)
    assert {"name": "subset losses", "points": [[0.5, 0.3]], "words": "by share"} in loss_curves(outer)


def test_nothing_hostile_is_in_the_page_as_it_is(told_page: Any) -> None:
    assert "<img" not in told_page.split("<script type")[0]
    assert told_page.count("</script>") == 2
    assert "\u202e" not in told_page
    assert "\u200b" not in told_page
    assert "w" * 100 not in told_page
    assert "<b>bold" not in told_page
    content = re.search(r'id="data">(.*?)</script>', told_page, re.S)
    assert content
    assert json.loads(content[1]) == told_page.data


@pytest.mark.parametrize("text", HOSTILE)
def test_visible_text_is_short_and_seen(text: str) -> None:
    assert visible(text).isprintable()
    assert len(visible(text)) < 100


def test_pages_and_their_code_are_small(told_page: Any) -> None:
    data = re.search(r'id="data">(.*?)</script>', told_page, re.S)
    assert data
    assert len(told_page.encode()) - len(data[1].encode()) < 100_000
    assert len(told_page.encode()) < 1_000_000


def test_what_is_too_large_is_left_out_and_said(told: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuit.pages.build.LARGEST_PAGE", 60_000)
    page: Any = told.circuit.page(told.model, told.task, told.text, tokenizer=Tokens())
    assert any(line.startswith("Left out contexts of nodes") for line in page.data["omitted"])
    assert "Left out contexts of nodes" in page.split("<script")[0]
    assert "text" not in page.data["nodes"][0]


def test_a_page_needs_neither_tokenizer_nor_text(told: Story) -> None:
    page: Any = told.circuit.page(told.model, told.task)
    assert "#10" in page.data["tokens"]
    assert "Contexts: no pretraining text was given" in page.data["omitted"]


def test_a_circuit_of_another_model_is_refused(told: Story) -> None:
    other = told.circuit.model_copy(update={"model": "0" * 16})
    with pytest.raises(InputError, match="model"):
        other.page(told.model, told.task)


def test_notebooks_get_a_still_graph(told: Story) -> None:
    still = told.circuit._repr_html_()
    assert still.count("<circle") == told.circuit.n_nodes
    assert still.count("<path") == told.circuit.n_edges
    assert "&lt;/script&gt;story" in still
    assert "<script" not in still


def test_notes_go_into_a_page_and_wrong_ones_are_refused(told: Story, tmp_path: Any) -> None:
    path = tmp_path / "notes.json"
    content = Notes.none_on(told.circuit).model_dump() | {"names": {"layers.0.attn.v.1": "the sign"}}
    path.write_text(json.dumps(content))
    page: Any = told.circuit.page(told.model, told.task, notes=Notes.load(str(path)))
    assert page.data["notes"]["names"] == {"layers.0.attn.v.1": "the sign"}
    for change, words in (
        ({"names": {"layers.9.attn.v.1": "x"}}, "layers.9.attn.v.1"),
        ({"task": "other"}, "other"),
        ({"names": {"layers.0.attn.v.1": "x" * 99}}, "99"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(InputError, match=words):
            told.circuit.page(told.model, told.task, notes=Notes.load(str(path)))
    path.write_text("[]")
    with pytest.raises(InputError, match=r"notes\.json"):
        Notes.load(str(path))
