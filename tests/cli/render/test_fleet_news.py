"""What a fleet's loop says of its VMs: each thing once, when it comes about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pages
import pytest
from attrs import evolve

from qmpballoon.cli.render.fleet_news import News

if TYPE_CHECKING:
    from qmpballoon.fleet.vm import View

WELL = evolve(pages.WELL, name="vm")
BUSY = evolve(WELL, state="busy", detail="another client holds it")
STALLED = evolve(WELL, state="stalled", detail="it gives no more")
SAID_BUSY = "qmpballoon: vm takes no part: another client holds it"
SAID_STALLED = "qmpballoon: vm is left alone for a while: it gives no more"
SAID_BACK = "qmpballoon: vm takes part again"
SAID_GONE = "qmpballoon: vm is there no more"


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([[], [WELL], [WELL]], []),
        ([[BUSY], [BUSY], [BUSY]], [SAID_BUSY]),
        ([[WELL], [BUSY], [WELL], [BUSY]], [SAID_BUSY, SAID_BACK, SAID_BUSY]),
        ([[WELL], [STALLED], [STALLED], [WELL]], [SAID_STALLED]),
        ([[BUSY], [STALLED]], [SAID_BUSY, SAID_BACK, SAID_STALLED]),
        ([[WELL], [], []], [SAID_GONE]),
        # That it is out of reach was said; it is news if it comes back so.
        ([[BUSY], [], [BUSY]], [SAID_BUSY, SAID_BUSY]),
    ],
)
def test_what_is_said(
    states: list[list[View]], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    news = News()
    for views in states:
        news.tell(views)
    assert capsys.readouterr().err.splitlines() == said


def test_one_that_connects_is_about_to_be_something_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    news, connecting = News(), evolve(WELL, state="connecting")
    for views in ([connecting], [WELL], [BUSY], [connecting], [BUSY]):
        news.tell(views)
    assert capsys.readouterr().err.splitlines() == [SAID_BUSY]
