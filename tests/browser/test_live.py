"""Live pages of a real guest in a real browser, from the link to the server's end."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from site_of_vms import HOSTILE, Site, open_site

from qmpballoon.sizes import MiB, format_size
from qmpballoon.testing.lab import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Locator, Page

    Visit = Callable[..., Page]

# What a browser says of a server that is gone, and of a change that is refused.
EXPECTED = ("ERR_", "403 (Forbidden)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    try:
        with open_site(tmp_path_factory.mktemp("site")) as site:
            yield site
    except LabError as error:
        tell = pytest.fail if os.environ.get("CI") else pytest.skip
        tell(str(error))


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Visit]:
    """Return what opens the link, in a window of its own.

    When the test ends, no page may have said anything else on its console than what a
    test has brought about; and nobody else may have been asked for anything.
    """
    said: list[str] = []
    asked: set[str] = set()

    def visit(**options: Any) -> Page:  # noqa: ANN401 - a context's
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(300_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.add(request.url))
        page.goto(site.link)
        page.wait_for_selector("table.live")
        return page

    yield visit
    for context in browser.contexts:
        context.close()
    assert [text for text in said if not any(map(text.count, EXPECTED))] == []
    assert [url for url in asked if not url.startswith((site.top, "data:,"))] == []


def wait_for_text(found: Locator, text: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect  # noqa: PLC0415 - as in conftest.py

    expect(found).to_have_text(text)


def find_violations(page: Page) -> list[tuple[str, Any]]:
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415 - likewise

    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [(rule["id"], rule["nodes"]) for rule in found]


def test_all_vms_are_seen_sorted_and_filtered(visit: Visit) -> None:
    page = visit(bypass_csp=True)
    wait_for_text(page.locator("#connection"), "Live")
    names = page.locator("table.live tbody th a")
    assert names.all_text_contents() == [HOSTILE, "guest"]
    page.get_by_role("button", name="has").press("Enter")
    assert page.locator("[aria-sort]").text_content() == "has"
    assert names.all_text_contents() == [HOSTILE, "guest"], "the largest first"
    page.get_by_role("button", name="has").press("Enter")
    assert names.all_text_contents() == ["guest", HOSTILE]
    page.get_by_label("Show VMs with").fill("GUEST")
    assert page.get_by_role("link", name="guest").is_visible()
    assert not page.locator("tr", has_text="alert").is_visible()
    page.get_by_label("Show VMs with").fill("")
    # A name that others have chosen stays a text, also in what comes later.
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert find_violations(page) == []
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_reclaim_from_plan_to_giving_back(visit: Visit, site: Site) -> None:
    page = visit(bypass_csp=True)
    page.get_by_role("link", name="guest").click()
    actual = page.locator("[data-curve=actual]")
    before = site.query()
    wait_for_text(actual, format_size(before))
    go = page.locator("[data-change=reclaim]")
    assert not go.is_visible()
    page.get_by_label("Reclaim").fill("200M")
    page.get_by_label("keep it").check()
    page.get_by_role("button", name="Plan it").press("Enter")
    wait_for_text(page.locator("#answer"), re.compile("^200 MiB can be taken, .*"))
    assert site.query() == before
    # As it goes on: what was requested, and what the guest has.
    page.evaluate(
        "window.seen = new Set(); new MutationObserver(() => seen.add("
        "document.querySelector('[data-curve=actual]').textContent)).observe("
        "document.body, {subtree: true, characterData: true, childList: true})"
    )
    go.press("Enter")
    wait_for_text(page.locator("#job p"), re.compile("handed over 200 MiB"))
    assert site.query() == before - 200 * MiB
    wait_for_text(actual, format_size(before - 200 * MiB))
    wait_for_text(page.locator("[data-curve=target]"), format_size(before - 200 * MiB))
    assert page.evaluate("seen.size") > 1
    assert find_violations(page) == []
    page.get_by_role("button", name="Give all back").press("Enter")
    wait_for_text(page.locator("#job p"), re.compile("^reached: "))
    assert site.query() == before
    wait_for_text(actual, format_size(before))
    assert "asked for: reclaim 200 MiB, and keep it" in str(
        page.locator("#log").text_content()
    )


def test_a_job_is_stopped(visit: Visit) -> None:
    page = visit()
    page.locator("tr", has_text="alert").get_by_role("link").click()
    page.get_by_label("Resize to").fill("1M")
    page.get_by_role("button", name="Resize").press("Enter")
    wait_for_text(page.locator("#job p"), re.compile("below the floor"))
    page.get_by_role("button", name="Plan it").press("Enter")
    wait_for_text(page.locator("#answer"), re.compile(" can be taken, "))
    page.locator("[data-change=reclaim]").press("Enter")
    wait_for_text(page.locator("#job p"), re.compile("^reclaim: inflating"))
    page.get_by_role("button", name="Stop").press("Enter")
    wait_for_text(page.locator("#job p"), "the reclaim was stopped")
    wait_for_text(page.locator("[data-curve=actual]"), "2 GiB")


def test_a_change_without_the_key_is_refused(visit: Visit, site: Site) -> None:
    page = visit()
    before = site.query()
    status = page.evaluate(
        """async () => {
          const response = await fetch("api/resize", {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ vm: "guest", size: "500M" }),
          });
          return response.status;
        }"""
    )
    assert status == 403
    assert site.query() == before


def test_a_page_outlives_the_server_and_a_vm(visit: Visit, site: Site) -> None:
    page = visit()
    other = page.context.new_page()
    other.goto(site.top)
    other.locator("tr", has_text="alert").get_by_role("link").click()
    assert other.locator("h1").text_content() == HOSTILE
    wait_for_text(other.locator("#connection"), "Live")  # its script is loaded
    site.stop()
    lost = re.compile("^No connection to the server")
    wait_for_text(page.locator("#connection"), lost)
    site.start()
    wait_for_text(page.locator("#connection"), "Live")
    wait_for_text(other.locator("#connection"), "Live")
    site.end_fake()
    wait_for_text(other.locator("#state"), "It is not in the fleet any more.")
    wait_for_text(page.locator("#host"), re.compile("^1 VM. "))
    assert page.locator("table.live tbody tr").count() == 1
