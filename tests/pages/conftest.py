"""A real browser, with no network, and pages to open in it. Without a browser its tests are skipped, except in CI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pages.stories import Story, Tokens, story

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync")  # fmt: skip


@pytest.fixture(scope="session")
def told() -> Story:
    """The planted story and its circuit."""
    return story()


@pytest.fixture(scope="session")
def told_page(told: Story) -> Any:
    """Its page."""
    return told.circuit.page(told.model, told.task, told.text, tokenizer=Tokens(), origin={"study": "<b>bold</b>"})


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium: .ci/run installs it")
        pytest.skip("no chromium here")
    playwright = pytest.importorskip("playwright.sync_api")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *root])
        yield started
        started.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """`opened(html)` is the page in a context of its own, offline; at the end it must have said nothing on its console
    and asked for nothing but itself."""
    contexts, said, asked = [], [], []

    def open_page(content: str | Path, fragment: str = "", **options: Any) -> Any:
        if isinstance(content, Path):
            path = content
        else:
            path = tmp_path / f"page{len(contexts)}.html"
            path.write_text(content, encoding="utf-8")
        context = browser.new_context(offline=True, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{path}{fragment}")
        page.wait_for_selector("html[data-ready]", state="attached", timeout=10_000)
        return page

    open_page.said = said  # type: ignore[attr-defined]
    yield open_page
    for context in contexts:
        context.close()
    assert not said
    assert all(url.startswith(("file://", "blob:")) for url in asked), asked
