"""How fast a report opens and scrolls in Chromium (Debian's), by its number of trials, which are planted.

open: seconds from the navigation until the page, a file, is complete, the median of rounds; frame: milliseconds
between two pictures while it scrolls, the median of thirty.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from frontier_query import plant
from playwright.sync_api import sync_playwright
from timing import processor

from sweeps.pages.report import rendered
from sweeps.pages.report_data import report_data

OPENED = "(performance.timing.domComplete - performance.timing.navigationStart) / 1000"
FRAME = """() => new Promise((done) => {
    const times = []; let last = performance.now();
    const step = (now) => {
        times.push(now - last); last = now; window.scrollBy(0, 40);
        if (times.length < 30) requestAnimationFrame(step);
        else done(times.sort((a, b) => a - b)[15]);
    };
    requestAnimationFrame(step);
})"""


def main() -> None:
    """Print a table; with --json also write the figures as one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=5, help="times that each page is opened")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        parser.error("no chromium here")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    figures: dict[str, Any] = {"processor": processor()}
    print(f"{processor()}\n{'trials':>7} {'MB':>6} {'open s':>7} {'frame ms':>9}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        for trials in arguments.trials:
            page = Path(folder, f"{trials}.html")
            page.write_text(_page(Path(folder, str(trials)), trials))
            seconds, frame = _opened(browser, page, arguments.rounds)
            megabytes = page.stat().st_size / 1e6
            figures[str(trials)] = {"megabytes": megabytes, "open_s": seconds, "frame_ms": frame}
            print(f"{trials:>7} {megabytes:6.2f} {seconds:7.2f} {frame:9.1f}")
        browser.close()
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=1)


def _page(root: Path, trials: int) -> str:
    plant(str(root), trials, small=0)
    return rendered(report_data([str(root)], {}) | {"out": "report"})


def _opened(browser: Any, page: Path, rounds: int) -> tuple[float, float]:
    """Median seconds that it takes to open, and median milliseconds of a frame."""
    seconds, frames = [], []
    for _ in range(rounds):
        view = browser.new_page()
        view.goto(page.as_uri())
        seconds.append(view.evaluate(OPENED))
        frames.append(view.evaluate(FRAME))
        view.close()
    return statistics.median(seconds), statistics.median(frames)


if __name__ == "__main__":
    main()
