"""The live page of a cluster in a real browser; its server is in memory."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, evolve, field

from qmpballoon._transport.http_hosts import KnownHosts
from qmpballoon._transport.listening import listen_on
from qmpballoon.cluster.bus import JOB_KEY, POLICY_KEY, make_state_key
from qmpballoon.cluster.documents import (
    HostState,
    Job,
    JobProgress,
    Offer,
    Policy,
    Room,
)
from qmpballoon.cluster.memory import MemoryServer
from qmpballoon.sizes import GiB
from qmpballoon.web import Access, open_cluster_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator, Page

TOKEN = "the-token-of-these-tests-is-no-secret"  # noqa: S105 - so it is
HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)>"
JOB = Job("0" * 16, 8 * GiB, True, True, 2.0**39, 600.0, {"h1": 8 * GiB})  # noqa: FBT003 - a job's


@define
class Site:
    """Serves the page of a cluster on a thread, until told to end."""

    server: MemoryServer = field(factory=MemoryServer)
    port: int = 0
    _token: trio.lowlevel.TrioToken = field(init=False)
    _end: trio.Event = field(factory=trio.Event)

    def run(self, ready: queue.Queue[None]) -> None:
        trio.run(self._run, ready)

    async def _run(self, ready: queue.Queue[None]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with listen_on("127.0.0.1", 0) as listener:
            self.port = listener.getsockname()[1]
            async with open_cluster_pages(
                self.server.connect("viewer"),
                listener,
                Access(TOKEN, KnownHosts.of("127.0.0.1")),
                period=0.1,
            ):
                ready.put(None)
                await self._end.wait()

    def say(self, state: HostState) -> None:
        """Have a host say how it is, for ever."""
        key, data = make_state_key(state.name), state.to_bytes()
        self._token.run_sync_soon(self.server.put, key, data)

    def stop_answering(self) -> None:
        self.server.is_down = True

    def end(self) -> None:
        self._token.run_sync_soon(self._end.set)


def make_state(name: str, available: int, **others: Any) -> HostState:  # noqa: ANN401 - a state's
    return HostState(
        *(name, time.time() + 2**20, 64 * GiB, available, GiB),
        room=Room(GiB, 2 * GiB, 3 * GiB),
        offer=Offer(4 * GiB, 2 * GiB, GiB),
        vms=3,
        policy_revision=7,
        **others,
    )


@pytest.fixture
def site() -> Iterator[Site]:
    site, ready = Site(), queue.Queue[None]()
    site.server.put(POLICY_KEY, Policy(7, comment=HOSTILE).to_bytes())
    site.server.put(JOB_KEY, JOB.to_bytes())
    thread = threading.Thread(target=site.run, args=(ready,))
    thread.start()
    ready.get()
    yield site
    site.end()
    thread.join()


def wait_for(found: Locator, text: str) -> None:
    from playwright.sync_api import expect  # noqa: PLC0415 - as in conftest.py

    expect(found).to_contain_text(text)


def find_violations(page: Page) -> list[tuple[str, Any]]:
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415 - likewise

    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [(rule["id"], rule["nodes"]) for rule in found]


def test_all_hosts_are_seen_live_sorted_filtered_and_by_everybody(
    browser: Browser, site: Site
) -> None:
    said: list[str] = []
    progress = JobProgress(JOB.id, 8 * GiB, GiB, "taking", JOB.until)
    h1 = make_state("h1", 10 * GiB, progress=progress)
    site.say(h1)
    site.say(make_state("h2", 20 * GiB, notes=(HOSTILE,)))
    site.server.put(make_state_key("h3"), b"{")
    context = browser.new_context(bypass_csp=True)
    page = context.new_page()
    page.set_default_timeout(300_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(f"http://127.0.0.1:{site.port}/?token={TOKEN}")
    page.wait_for_selector("table.live")
    wait_for(page.locator("#connection"), "Live")
    wait_for(page.locator("#cluster"), "3 hosts: 2 healthy, 1 malformed")
    names = page.locator("tbody th")
    page.get_by_role("button", name="available").press("Enter")
    assert names.all_text_contents() == ["h2", "h1", "h3"], "the unknown come last"
    # What changes comes by itself, and stays where it belongs.
    row = page.locator("tr", has_text="taking")
    wait_for(row, "taking 1 GiB of 8 GiB")
    site.say(evolve(h1, available=30 * GiB, progress=evolve(progress, taken=6 * GiB)))
    wait_for(row, "taking 6 GiB of 8 GiB")
    wait_for(page.locator("#job"), "6 GiB of 8 GiB; 0 of 1 hosts are ready")
    assert names.all_text_contents() == ["h1", "h2", "h3"]
    site.say(make_state("h4", 40 * GiB))
    wait_for(page.locator("#cluster"), "4 hosts: ")
    assert names.all_text_contents() == ["h4", "h1", "h2", "h3"]
    page.get_by_label("Show hosts with").fill("malformed")
    assert page.locator("tbody tr:visible").count() == 1
    page.get_by_label("Show hosts with").fill("")
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert find_violations(page) == []
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    site.stop_answering()
    wait_for(page.locator("#problem"), "What is shown is old: ")
    assert find_violations(page) == []
    page.set_viewport_size({"width": 1280, "height": 900})
    context.close()
    assert said == []
