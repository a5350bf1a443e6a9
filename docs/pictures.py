"""Makes the pictures that the documentation shows.

``python docs/pictures.py reclaim`` boots a guest of 16 GiB, reclaims its page cache,
and saves the page and the chart of that. It takes two minutes and 16 GiB of memory.

``python docs/pictures.py screenshots`` takes pictures of that page, in light and in
dark. It needs Debian's chromium, and playwright (``pip install --group browser``).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import trio

from qmpballoon import GiB, Guard, MiB, ReclaimReport, open_balloon
from qmpballoon.export import Facts, list_settings, save
from qmpballoon.testing import lab

STATIC: Final = Path(__file__).parent / "_static"
PAGE: Final = STATIC / "reclaim-16g.html"
TITLE: Final = "Reclaiming memory from a guest of 16 GiB"
MEMORY: Final = 16 * GiB
CACHE: Final = round(14.3 * GiB)
GUARD: Final = Guard(headroom=256 * MiB)
SHOWN: Final = {"width": 1280, "height": 900}  # pixels
AT: Final = 0.4  # of the chart's width is where the pointer is


async def reclaim() -> ReclaimReport:
    """Reclaim the page cache of a guest of 16 GiB."""
    async with (
        lab.boot(memory=MEMORY, cache=CACHE) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        return await balloon.reclaim(guard=GUARD)


def save_report(report: ReclaimReport) -> None:
    """Save its page and its chart."""
    facts = Facts.of_reclaim(report, list_settings(GUARD, MEMORY))
    for path in (PAGE, PAGE.with_suffix(".svg")):
        save(path, report.timeline, title=TITLE, facts=facts)


def take_screenshots() -> None:
    """Take pictures of the page, in light and in dark."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - one command's

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        for scheme in ("light", "dark"):
            shown = browser.new_page(viewport=SHOWN, color_scheme=scheme)
            shown.goto(PAGE.as_uri())
            chart = shown.locator(".main .marks").bounding_box()
            shown.mouse.move(chart["x"] + AT * chart["width"], chart["y"] + 1)
            shown.screenshot(path=PAGE.with_name(f"reclaim-16g-{scheme}.png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", choices=("reclaim", "screenshots"))
    if parser.parse_args().picture == "reclaim":
        save_report(trio.run(reclaim))
    else:
        take_screenshots()
