"""What a fleet has done lately is what was seen of its guests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve
from pages import GONE, WELL

from qmpballoon.cli.render.history import STEPS, History
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from qmpballoon.fleet.vm_view import VmView


def seen(size: int, available: int, name: str = "vm") -> VmView:
    stats = evolve(WELL.stats, available=available)
    return evolve(WELL, name=name, actual=size, total=4 * GiB, stats=stats)


def test_the_last_three_minutes_are_drawn_by_their_worst_moments() -> None:
    history = History()
    for second in range(180):
        falls = 4 * GiB - second * 20 * MiB
        history.note(second, [seen(4 * GiB, MiB if second == 7 else falls)])
    drawn = history.draw("vm")
    assert len(drawn) == STEPS
    assert drawn[0] == "\u2581"
    assert list(drawn[1:]) == sorted(drawn[1:], reverse=True)
    assert drawn[1] == "\u2587"
    # A quarter of an hour in which nothing was seen.
    history.note(1100, [seen(4 * GiB, GiB)])
    assert history.draw("vm").split() == ["\u2583"]


def test_what_is_not_known_is_a_gap() -> None:
    history = History()
    assert history.draw("vm") == " " * STEPS
    history.note(0, [seen(GiB, GiB)])
    history.note(16, [evolve(GONE, name="vm")])
    history.note(31, [seen(GiB, GiB)])
    assert history.draw("vm") == "\u2583 \u2583".rjust(STEPS)
    history.note(32, [])
    assert history.draw("vm") == " " * STEPS


def test_moves_are_those_of_the_last_minute() -> None:
    history = History()
    for second in range(0, 200, 10):
        giver = seen(4 * GiB - second * MiB, 2 * GiB, "giver")
        taker = seen(GiB + (second >= 150) * GiB, GiB, "taker")
        history.note(second, [giver, taker])
    said = history.describe([giver, taker])
    assert "in the last minute gave 60 MiB, got 1 GiB" in said
    assert said.startswith("no guest is in need;")
    assert said.endswith("giver can spare most, 1.9 GiB")


def test_nobody_is_known() -> None:
    said = History().describe([GONE])
    assert said.startswith("of no guest it is known")
    assert "spare" not in said


def test_of_several_in_need_the_neediest_is_named() -> None:
    views = [seen(GiB, size * MiB, f"vm{size}") for size in (100, 28, 2000)]
    said = History().describe(views)
    assert said.startswith("vm28 lacks 100 MiB (and 1 more);")
