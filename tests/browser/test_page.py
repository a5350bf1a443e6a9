"""A page opens from a file in a real browser, and does what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from timelines import make_timeline

from qmpballoon import export
from qmpballoon.balloon.sampling import Sample
from qmpballoon.sizes import GiB, KiB, MiB, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Locator, Page

    Look = Callable[..., Page]

HOSTILE: Final = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
# Those that are the hardest to round.
SIZES: Final = (
    *(GiB - 1, 5 * GiB // 4, 7 * GiB // 4, KiB - 1, 1280, MiB, 0),
    *(1023 * MiB + 1000 * KiB, 3 * GiB, 2**50 + 1, 2**62),
)
SAMPLES: Final = [
    Sample(
        float(t),
        target=None if t == 0 else GiB,
        actual=2 * GiB,
        total=2 * GiB,
        free=size,
        available=2 * GiB,
        disk_caches=GiB,
        resident=2 * GiB,
        disk_reads=t * MiB,
        mark=HOSTILE if t == 3 else None,
    )
    for t, size in enumerate(SIZES)
]
LAST: Final = len(SAMPLES) - 1


@pytest.fixture(scope="module")
def text() -> str:
    """A page with all that there can be on one."""
    facts = export.Facts(
        sentence=f"A sentence {HOSTILE}.",
        changes=[export.Change("guest: free", GiB, None)],
        remarks=["A remark."],
        settings={"headroom": "64 MiB"},
    )
    return export.format_page(make_timeline(*SAMPLES), title=HOSTILE, facts=facts)


def wait_for_text(found: Locator, text: str) -> None:
    from playwright.sync_api import expect  # noqa: PLC0415 - as in conftest.py

    expect(found).to_have_text(text)


def wait_for_view(page: Page, view: str) -> None:
    from playwright.sync_api import expect  # noqa: PLC0415 - as in conftest.py

    for plot in page.locator(".plot").all():
        expect(plot).to_have_attribute("viewBox", f"{view} 4000")


def wait_for_another_view(page: Page, view: str) -> None:
    from playwright.sync_api import expect  # noqa: PLC0415 - as in conftest.py

    for plot in page.locator(".plot").all():
        expect(plot).not_to_have_attribute("viewBox", f"{view} 4000")


@pytest.mark.parametrize("width", [360, 1600])
def test_a_page_fits_the_window(look: Look, text: str, width: int) -> None:
    page = look(text, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for plot in page.locator(".plot").all():
        box = plot.bounding_box()
        assert box is not None
        assert 0 < box["x"] < box["x"] + box["width"] <= width
        assert box["width"] > width / 2


def test_the_pointer_reads_out_a_moment(look: Look, text: str) -> None:
    page = look(text)
    area = page.locator(".marks").first
    box = area.bounding_box()
    assert box is not None
    area.hover(position={"x": box["width"] * 1.9 / LAST, "y": 50})
    wait_for_text(page.locator("output"), "2.0 s")
    wait_for_text(page.locator("[data-curve=free]"), format_size(SIZES[2]))
    wait_for_text(page.locator("[data-curve=reads]"), "1 MiB/s")
    assert page.locator(".cursor").first.get_attribute("x1") == f"{200 // LAST}%"


def test_the_keys_read_out_every_moment_as_python_does(look: Look, text: str) -> None:
    page = look(text)
    slider = page.get_by_role("slider", name="Time")
    assert f"{LAST}.0 s" in str(slider.get_attribute("aria-valuetext"))
    slider.press("Home")
    for t, size in enumerate(SIZES):
        wait_for_text(page.locator("output"), f"{t}.0 s")
        assert page.locator("[data-curve=free]").text_content() == format_size(size)
        said = str(slider.get_attribute("aria-valuetext"))
        assert f"{t}.0 s" in said
        assert f"guest free {format_size(size)}" in said
        assert ("requested unknown" in said) is (t == 0)
        slider.press("ArrowRight")


def test_time_can_be_zoomed(look: Look, text: str) -> None:
    page = look(text)
    whole = f"0 0 {LAST * 1000}"
    wait_for_view(page, whole)
    page.get_by_role("slider", name="Time").press("Home")
    page.get_by_role("button", name="Zoom in").press("Enter")
    wait_for_view(page, f"0 0 {LAST * 500}")
    page.get_by_role("slider", name="Time").press("End")
    wait_for_view(page, f"{LAST * 500} 0 {LAST * 500}")
    page.get_by_role("button", name="Show all").press("Enter")
    wait_for_view(page, whole)
    area = page.locator(".marks").nth(1)
    box = area.bounding_box()
    assert box is not None
    y = box["y"] + 20
    page.mouse.move(box["x"] + 0.25 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], y)
    page.mouse.up()
    wait_for_another_view(page, whole)
    view = str(page.locator(".plot").last.get_attribute("viewBox"))
    start, _, span, _ = map(float, view.split())
    assert start == pytest.approx(LAST * 250, rel=0.05)
    assert span == pytest.approx(LAST * 500, rel=0.05)
    area.dblclick()
    wait_for_view(page, whole)


def test_a_hostile_name_stays_a_text(look: Look, text: str) -> None:
    page = look(text)
    assert page.title() == HOSTILE
    assert page.locator("h1").text_content() == HOSTILE
    assert page.locator(".main .marks text").text_content() == HOSTILE
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(look: Look, text: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415 - as above

    page = look(text, color_scheme=scheme, bypass_csp=True)
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    assert [(rule["id"], rule["nodes"]) for rule in found] == []


def test_without_a_script_it_can_be_read(look: Look, text: str) -> None:
    page = look(text, java_script_enabled=False)
    assert page.get_by_role("slider").count() == 0
    assert page.get_by_role("img").count() == 3
    wait_for_text(page.locator("[data-curve=free]"), format_size(SIZES[-1]))
    assert page.get_by_role("cell", name="unknown").is_visible()


def test_in_print_it_is_black_on_white(look: Look, text: str) -> None:
    page = look(text, color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == "rgb(18, 23, 28)"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    assert not page.get_by_role("slider").is_visible()
