"""What a fleet's commands say: sizes that add up, and each change once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pages
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.balloon.device import PAGE
from qmpballoon.cli.render.fleet import (
    Changes,
    describe_plan,
    describe_report,
    describe_small,
    describe_uncertain,
)
from qmpballoon.fleet.control_loop import FleetReclaimReport, VmReclaimReport
from qmpballoon.fleet.policy import FleetPlan, Move
from qmpballoon.fleet.vm_view import SmallGuest
from qmpballoon.sizes import GiB, TiB

if TYPE_CHECKING:
    from qmpballoon.fleet.vm_view import VmView

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


NUMBER = re.compile(r"[+-]?\d[\d.]* [KMGT]iB")
sizes = st.integers(0, 2 * TiB // PAGE).map(lambda pages: pages * PAGE)


def tenths(text: str) -> int:
    """Return the tenths of its unit that a written size has."""
    return round(float(text.split(maxsplit=1)[0]) * 10)


@given(st.lists(st.tuples(sizes, sizes), min_size=1))
def test_sizes_of_moves_add_up(moves: list[tuple[int, int]]) -> None:
    plan = FleetPlan(tuple(Move("vm", before, to, "why") for before, to in moves))
    _, *lines = describe_plan(pages.HOST, pages.RULES, plan).splitlines()
    shown = [NUMBER.findall(line) for line in lines]
    assert len({size.split()[1] for line in shown for size in line}) == 1
    changes: list[int] = []
    for before, target, change in shown[: len(moves)]:
        assert tenths(before) + tenths(change) == tenths(target)
        assert change[0] in "+-"
        changes.append(tenths(change))
    sums = [tenths(size) for (size,) in shown[len(moves) :]]
    given_and_got = (
        sum(-change for change in changes if change < 0),
        sum(change for change in changes if change > 0),
    )
    assert sums == [size for size in given_and_got if size]


@given(st.lists(sizes, min_size=1))
def test_what_guests_gave_adds_up(gifts: list[int]) -> None:
    vms = tuple(VmReclaimReport("vm", 4 * TiB, gift, gift, 0) for gift in gifts)
    report = FleetReclaimReport(sum(gifts), sum(gifts), held=False, vms=vms)
    *lines, last = describe_report(report, GiB, GiB).splitlines()
    shown = [NUMBER.findall(line)[0] for line in lines]
    total = NUMBER.findall(last)[0]
    assert sum(map(tenths, shown)) == tenths(total)
    assert {size.split()[1] for size in shown} == {total.split()[1]}


def test_of_many_small_guests_some_are_named() -> None:
    guests = [SmallGuest(f"vm{number}", GiB, 2 * GiB, GiB) for number in range(500)]
    *lines, last = describe_small(guests)
    assert [line.split(maxsplit=1)[0] for line in lines[:2]] == ["vm0", "vm1"]
    assert last == f"and {500 - len(lines)} more, which `fleet status` lists"
    assert describe_small(guests[: len(lines)]) == lines


def test_a_host_beyond_its_limit_has_nothing_available() -> None:
    host = evolve(pages.HOST, available=-2 * GiB)
    about, *_ = describe_plan(host, pages.RULES, FleetPlan()).splitlines()
    assert about.startswith(
        "The host has nothing available (2 GiB more than its limit in use) of 64 GiB"
    )
    gone = evolve(pages.HOST, available=0)
    assert "has 0 B available" in describe_plan(gone, pages.RULES, FleetPlan())
