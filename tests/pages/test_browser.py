"""Circuits' pages in a real browser with no network: what a reader sees and does. `opened` fails on console errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit.graph.record import Circuit
from circuit.inspect.activity import answer_pattern
from circuit.inspect.runs import seen_on
from circuit.pages import Notes
from pages.conftest import Open
from pages.stories import Story, Tokens, changed_to

KEY = "layers.0.attn.k.0"


def node(page: Any, name: str) -> Any:
    return page.locator(f'.node[aria-label^="{name}:"]')


def test_a_page_opens_offline_and_hostile_text_stays_text(opened: Any, told_page: Any) -> None:
    page = opened(told_page)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert "</script><img src=x onerror=hacked=1>" in page.locator("body").inner_text()
    policy = page.locator('meta[http-equiv="Content-Security-Policy"]').get_attribute("content")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    blocked = page.evaluate("fetch('https://example.org').then(() => 'open', () => 'blocked')")
    assert blocked == "blocked"
    assert any("Content Security Policy" in message for message in opened.said)
    opened.said.clear()  # the refusal was asked for


def test_hovering_says_what_a_weight_does(opened: Open, told_page: Any) -> None:
    page = opened(told_page)
    edge = page.locator("[data-edge] .edge-hit").first
    edge.dispatch_event("pointermove", {"clientX": 300, "clientY": 300})
    words = page.locator("#tip").inner_text()
    assert "when the first rises by 1, the second" in words
    assert "ablated in the circuit: loss" in words
    node(page, KEY).hover()
    assert "marks the cue" in page.locator("#tip").inner_text()


def test_clicking_chooses_a_node_and_back_and_forth_undo_it(opened: Open, told_page: Any) -> None:
    page = opened(told_page)
    node(page, KEY).click()
    assert KEY in page.locator("#panel-name").inner_text()
    assert f"node={KEY}" in page.evaluate("location.href")
    assert "chosen" in node(page, KEY).get_attribute("class")
    node(page, "layers.0.attn.v.1").click()
    page.go_back()
    assert KEY in page.locator("#panel-name").inner_text()
    page.go_back()
    assert page.locator("#panel-name").count() == 0
    page.go_forward()
    assert KEY in page.locator("#panel-name").inner_text()


def test_the_cone_fades_what_a_node_neither_depends_on_nor_reaches(opened: Open, told_page: Any) -> None:
    page = opened(told_page, "#node=layers.0.attn.v.1")
    for name in ("layers.0.attn.in.0", "layers.0.attn.in.1", "layers.0.attn.q.0", "layers.0.attn.out.5", "final.in.7"):
        assert "dim" not in node(page, name).get_attribute("class"), name  # it reads, is attended by, or reaches them
    page.locator('select[aria-label="Of the chosen node"]').select_option("above")
    assert "dim" in node(page, "layers.0.attn.in.0").get_attribute("class")
    assert "dim" not in node(page, "final.in.7").get_attribute("class")
    page.locator('select[aria-label="Of the chosen node"]').select_option("off")
    assert page.locator(".node.dim").count() == 0


def test_threshold_and_widths(opened: Open, told_page: Any) -> None:
    page = opened(told_page)
    slider = page.locator("#threshold")
    slider.fill(slider.get_attribute("max"))
    effects = [row[0] for row in told_page.data["ablations"]["nodes"]]
    assert page.locator(".node:not(.gone)").count() == sum(effect >= max(effects) - 1e-9 for effect in effects)
    slider.fill("0")
    assert page.locator(".node.gone").count() == 0
    widths = [w.get_attribute("stroke-width") for w in page.locator("[data-edge] .edge").all()]
    page.locator('select[aria-label="Width of edges"]').select_option("effect")
    assert widths != [w.get_attribute("stroke-width") for w in page.locator("[data-edge] .edge").all()]
    assert "width=effect" in page.evaluate("location.href")


def test_everything_by_keyboard(opened: Open, told_page: Any) -> None:
    page = opened(told_page)
    node(page, "layers.0.attn.in.0").focus()
    page.keyboard.press("ArrowUp")
    first = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert first.startswith("layers.0.attn.")
    assert not first.startswith("layers.0.attn.in")
    page.keyboard.press("Enter")
    assert first.split(":")[0] in page.locator("#panel-name").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#panel-name").count() == 0
    before = page.locator("#picture").get_attribute("width")
    page.keyboard.press("+")
    assert int(page.locator("#picture").get_attribute("width")) > int(before)
    reached, page = set(), opened(told_page)
    for _ in range(150):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName + (document.activeElement.dataset.node || '')"))
    assert {"SELECT", "BUTTON", "INPUT", "TEXTAREA"} <= reached
    assert {f"g{i}" for i in range(11)} <= reached


def test_notes_make_the_round_trip(opened: Open, told: Story, told_page: Any, tmp_path: Path) -> None:
    page = opened(told_page, f"#node={KEY}")
    page.locator("summary", has_text="Name, group, note").click()
    page.get_by_label("a name of your own").fill("<i>the mark</i>")
    page.get_by_label("group", exact=True).fill("finding")
    page.get_by_label("note", exact=True).fill("only the cue has it")
    page.locator("#whole-note").fill("copies a sign")
    page.locator("#whole-note").blur()
    assert "<i>the mark</i>" in node(page, KEY).text_content()
    again = opened(told_page, page.evaluate("location.hash"))
    assert "<i>the mark</i>" in again.locator("#notes").inner_text()
    with again.expect_download() as download:
        again.locator("#download").click()
    path = tmp_path / "notes.json"
    download.value.save_as(path)
    notes = Notes.load(str(path))
    assert (notes.names, notes.groups) == ({KEY: "<i>the mark</i>"}, {KEY: "finding"})
    assert notes.notes == {KEY: "only the cue has it", "": "copies a sign"}
    renewed = opened(told.circuit.page(told.model, told.task, tokenizer=Tokens(), notes=notes))
    assert "<i>the mark</i>" in renewed.locator("#notes").inner_text()


@pytest.mark.parametrize(
    "fragment",
    ["#node=nothing&least=x&head=99&prompt=-1&cone=up", "#notes={not json", '#notes={"names":{"layers.0.attn.k.0":5}}',
     "#" + "a=b&" * 2000, '#node=</script><script>hacked=1</script>'],
)  # fmt: skip
def test_a_hostile_address_does_nothing(opened: Open, told_page: Any, fragment: str) -> None:
    page = opened(told_page, fragment)
    assert page.locator(".node").count() == 11
    assert page.evaluate("window.hacked") is None


def test_the_pages_softmax_is_the_models(opened: Open, told: Story, told_page: Any) -> None:
    data = told_page.data
    page = opened(told_page)
    for run in ("circuit", "model"):
        shown = [
            float(title.strip().lstrip("+"))
            for title in page.locator(f'[data-answer-row="{run}"] .token').evaluate_all(
                "all => all.map((t) => t.title)"
            )
        ]
        row = data["prompts"]["rows"][data["attention"]["rows"][0]]
        margins = {"circuit": row["margin"], "model": row["model_margin"]}
        seen = seen_on(told.model, told.circuit, told.task.heldout, whole=run == "model", layers=frozenset({0}))
        whole = seen_on(told.model, told.circuit, told.task.heldout, whole=True).margins
        at = int((whole - margins["model"]).abs().argmin())
        shares, _ = answer_pattern(seen.q[0][..., :4], seen.k[0][..., :4], told.task.heldout, None)
        assert shown == pytest.approx(shares[at, : len(shown)].tolist(), abs=6e-3)


def test_prompts_follow_the_chosen_node(opened: Open, told_page: Any) -> None:
    page = opened(told_page, "#node=layers.0.attn.out.5")
    assert "L0.attn.out.5" in page.locator("#prompts-controls").inner_text()
    values = (
        page.locator("#prompts .pairbox").first.locator(".heat").first.locator(".token").last.get_attribute("title")
    )
    assert abs(float(values)) > 10
    assert page.locator("#prompts .pairbox").count() == 8
    page.get_by_role("button", name="show all 24 pairs").click()
    assert page.locator("#prompts .pairbox").count() == 24


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_narrow(opened: Open, told_page: Any, scheme: str) -> None:
    page = opened(told_page, f"#node={KEY}", color_scheme=scheme, viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper, ink = (page.evaluate(f"getComputedStyle(document.body).{what}") for what in ("backgroundColor", "color"))
    light = [sum(int(x) for x in colour[4:-1].split(",")) for colour in (paper, ink)]
    assert (light[0] > light[1]) == (scheme == "light")


def test_a_page_in_print_has_no_controls_and_all_of_the_graph(opened: Open, told_page: Any) -> None:
    page = opened(told_page, color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator(".controls").first.is_visible()
    assert page.evaluate("getComputedStyle(document.getElementById('graph')).overflow") == "visible"
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()") == "#fff"


def unsolved(told: Story) -> Circuit:
    nothing = dict.fromkeys(("n_nodes", "n_edges", "n_embedding_edges", "n_unembedding_edges"), 0)
    gone = {"status": "unsolved", "nodes": {}, "edges": (), "means": {}, "resample_losses": {}, "unpruned_loss": 0.7}
    return changed_to(told.circuit, nothing | gone)


def test_an_unsolved_task(opened: Open, told: Story) -> None:
    page = opened(unsolved(told).page(told.model, told.task, told.text, tokenizer=Tokens()))
    assert "The whole model does not do this task: its own loss is 0.700" in page.locator("body").inner_text()
    assert page.locator("#picture").count() == 0


@pytest.mark.parametrize("nodes", [{}, {"final.in": (7,)}])
def test_circuits_without_an_edge(opened: Open, told: Story, nodes: dict[str, tuple[int, ...]]) -> None:
    changes = {"nodes": nodes, "edges": (), "n_nodes": len(nodes), "n_edges": 0, "n_unembedding_edges": 0}
    circuit = changed_to(told.circuit, changes)
    page = opened(circuit.page(told.model, told.task, told.text, tokenizer=Tokens()))
    assert page.locator(".node").count() == len(nodes)
    words = "No edge is needed" if nodes else "No node is needed"
    assert words in page.locator(".notice").first.inner_text()


def test_data_of_a_page_is_json_that_others_read(opened: Open, told_page: Any) -> None:
    page = opened(told_page)
    data = json.loads(page.locator("#data").text_content())
    assert (data["format"], data["version"]) == ("circuit-sweeps/page", 1)
    assert torch.tensor([edge[4] for edge in data["graph"]["edges"]]).abs().max() > 1
