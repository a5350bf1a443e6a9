"""What a fleet's loop says of its VMs: each change once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pages
import pytest
from attrs import evolve

from qmpballoon.cli.render.fleet import Changes, describe_uncertain

if TYPE_CHECKING:
    from qmpballoon.fleet.vm import VmView

WELL = evolve(pages.WELL, name="vm")
BUSY = evolve(WELL, state="busy", detail="another client holds it")
STALLED = evolve(WELL, state="stalled", detail="it gives no more")
SAID_BUSY = "vm takes no part: another client holds it"
SAID_STALLED = "vm is left alone for a while: it gives no more"
SAID_BACK = "vm takes part again"
SAID_GONE = "vm is no longer there"


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
def test_what_is_said(states: list[list[VmView]], said: list[str]) -> None:
    changes = Changes()
    assert [line for views in states for line in changes.describe(views)] == said


def test_one_that_connects_is_about_to_be_something_else() -> None:
    changes, connecting = Changes(), evolve(WELL, state="connecting")
    states = ([connecting], [WELL], [BUSY], [connecting], [BUSY])
    said = [line for views in states for line in changes.describe(views)]
    assert said == [SAID_BUSY]


def test_vms_that_count_with_their_sizes_are_named_where_there_is_a_limit() -> None:
    unknown = evolve(WELL, resident=None)
    known = evolve(WELL, name="known", resident=1)
    (line,) = describe_uncertain(pages.HOST, [known, unknown], limited=True)
    assert line.startswith("vm: ")
    assert describe_uncertain(pages.HOST, [known, unknown], limited=False) == []
    assert describe_uncertain(pages.HOST, [known], limited=True) == []


def test_what_is_uncertain_is_said_once_until_it_is_over() -> None:
    changes = Changes()
    host = evolve(pages.HOST, notes=("the group cannot be read",))
    said = [
        line
        for each in (host, host, pages.HOST, host)
        for line in changes.describe_new(describe_uncertain(each, [], limited=False))
    ]
    assert said == ["the group cannot be read"] * 2
