"""What the tests in a real browser have in common.

They need Debian's chromium, and playwright. Where one of them is not installed they
are skipped, with the reason; where the environment variable ``CI`` is set, that is a
failure.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

HERE = Path(__file__).parent
# Milliseconds; ends only what hangs.
PATIENCE: Final = 300_000
# A browser that is root's has no sandbox, and that is told to do nothing but this.
SWITCHES: Final = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests in this folder, so that none is run where it should not be."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")  # while it runs, so does an event loop of asyncio's
def browser() -> Iterator[Browser]:
    """Run a browser without a display."""
    program = shutil.which("chromium")
    if program is None or find_spec("playwright") is None:
        tell = pytest.fail if os.environ.get("CI") else pytest.skip
        tell(
            "no browser, or nothing to drive it: install Debian's package chromium,"
            " and `pip install --group browser`"
        )
    from playwright.sync_api import (  # noqa: PLC0415 - only this environment has it
        expect,
        sync_playwright,
    )

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=SWITCHES, timeout=PATIENCE
        )
        yield browser
        browser.close()


@pytest.fixture
def look(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Return what opens a page from a file, in a window of its own.

    When the test ends, no page may have said anything on its console, and nothing may
    have been asked for but the file itself.
    """
    said: list[str] = []
    asked: list[str] = []

    def look(text: str, width: int = 1280, **options: Any) -> Page:  # noqa: ANN401 - a context's
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, **options
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield look
    for context in browser.contexts:
        context.close()
    assert said == []
    assert set(asked) <= {(tmp_path / "page.html").as_uri()}
