"""Makes the pictures that the documentation shows.

``python docs/pictures.py reclaim`` boots a guest of 16 GiB, reclaims its page cache,
and saves the page and the chart of that. It takes two minutes and 16 GiB of memory.

``python docs/pictures.py screenshots`` takes pictures of that page, in light and in
dark. It needs Debian's chromium, and playwright (``pip install --group browser``).

``python docs/pictures.py web`` takes pictures of the live pages of five simulated VMs.
It takes three minutes, and needs the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from qmpballoon import GiB, Guard, MiB, ReclaimReport, open_balloon
from qmpballoon.export import Facts, list_settings, save
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from collections.abc import Iterator

STATIC: Final = Path(__file__).parent / "_static"
PAGE: Final = STATIC / "reclaim-16g.html"
TITLE: Final = "Reclaiming memory from a guest of 16 GiB"
MEMORY: Final = 16 * GiB
CACHE: Final = round(14.3 * GiB)
GUARD: Final = Guard(headroom=256 * MiB)
SHOWN: Final = {"width": 1280, "height": 900}  # pixels
SHOWN_LOW: Final = {"width": 1280, "height": 620}
AT: Final = 0.4  # of the chart's width is where the pointer is
SCHEMES: Final = ("light", "dark")
# Simulated VMs: their names, and what `qmpballoon fake` is told of them.
VMS: Final = {
    "build": "--memory 8G --used 5G --cache 2G",
    "database": "--memory 16G --used 2G --cache 12G",
    "mail": "--memory 4G --used 1G --cache 1G",
    "old": "--memory 2G --no-driver",
    "web-1": "--memory 8G --used 1G --cache 6G",
}
WARM_UP: Final = 3  # seconds until they listen
MEANWHILE: Final = 40  # seconds, so that there is something to see


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


@contextmanager
def open_browser() -> Iterator[Any]:
    """Run a browser without a display."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - two commands'

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )


def take_screenshots() -> None:
    """Take pictures of the page, in light and in dark."""
    with open_browser() as browser:
        for scheme in SCHEMES:
            shown = browser.new_page(viewport=SHOWN, color_scheme=scheme)
            shown.goto(PAGE.as_uri())
            chart = shown.locator(".main .marks").bounding_box()
            shown.mouse.move(chart["x"] + AT * chart["width"], chart["y"] + 1)
            shown.screenshot(path=PAGE.with_name(f"reclaim-16g-{scheme}.png"))


def take_web_screenshots() -> None:
    """Take pictures of the live pages, in light and in dark."""
    command = [sys.executable, "-m", "qmpballoon"]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name, options in VMS.items():
            fake = [*command, "fake", f"{folder}/{name}.qmp", *options.split()]
            stack.callback(subprocess.Popen(fake, stdout=subprocess.DEVNULL).kill)
        web = [*command, "web", f"{folder}/*.qmp", "--listen", "0", "--allow-changes"]
        time.sleep(WARM_UP)
        server = subprocess.Popen(web, stdout=subprocess.PIPE, text=True)
        stack.callback(server.kill)
        link = server.stdout.readline().split()[-1]
        with open_browser() as browser:
            context = browser.new_context(viewport=SHOWN)
            page = context.new_page()
            page.goto(link)
            page.click("text=database")
            time.sleep(MEANWHILE)
            page.fill("#size", "5G")
            page.click("text=Resize >> nth=-1")
            page.wait_for_selector("#job >> text=reached", timeout=0)
            page.fill("#amount", "")
            page.click("text=Plan it")
            page.click("[data-change=reclaim]", timeout=0)
            page.wait_for_selector("#job >> text=deflating", timeout=0)
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)
                page.screenshot(path=STATIC / f"web-vm-{scheme}.png")
            time.sleep(MEANWHILE)
            page.set_viewport_size(SHOWN_LOW)
            page.click("text=All VMs")
            page.wait_for_selector("text=Live")
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)
                page.screenshot(path=STATIC / f"web-{scheme}.png")


PICTURES: Final = {
    "reclaim": lambda: save_report(trio.run(reclaim)),
    "screenshots": take_screenshots,
    "web": take_web_screenshots,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", choices=PICTURES)
    PICTURES[parser.parse_args().picture]()
