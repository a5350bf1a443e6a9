"""A plan says what a reclaim would take, and takes nothing."""

from __future__ import annotations

import pytest
from faults import monitor_of
from notes import Note
from simulation import make_balloon, make_machine, run

from qmpballoon.balloon._plan import make_plan
from qmpballoon.balloon.device import LARGEST_PAGE, PAGE
from qmpballoon.balloon.guard import GuestLimits
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import SECOND, GuestConfig


def test_a_plan_takes_nothing_and_is_what_comes_of_it() -> None:
    machine = make_machine(memory=2 * GiB)
    balloon = make_balloon(machine)
    plan = run(balloon.plan_reclaim())
    assert monitor_of(balloon).targets() == []
    report = run(balloon.reclaim())
    assert report.handed_over == pytest.approx(plan.amount, abs=40 * MiB)
    assert report.seconds == pytest.approx(plan.seconds, rel=1)


def stats(available: int | None) -> GuestStats:
    return GuestStats(available=available)


@pytest.mark.parametrize("is_at_rest", [False, True])
def test_a_guest_that_moves_by_itself_is_waited_for_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture, *, is_at_rest: bool
) -> None:
    caplog.set_level("INFO", "qmpballoon.balloon")
    guest = GuestConfig(inflate_rate=256 * MiB, deflate_rate=256 * MiB)
    machine = make_machine(guest, memory=2 * GiB)
    machine.set_target(GiB)
    machine.advance(machine.now + (60 if is_at_rest else 1) * SECOND)
    balloon = make_balloon(machine)
    began = balloon.monitor.now()
    plan = run(balloon.plan_reclaim())
    assert plan.actual == GiB
    waited = balloon.monitor.now() - began
    assert (waited < 2) == is_at_rest
    said = [each for each in caplog.messages if "changes by itself" in each]
    assert len(said) == (0 if is_at_rest else 1)


@pytest.mark.parametrize("lacks", [0, LARGEST_PAGE - PAGE, LARGEST_PAGE])
def test_a_plan_says_what_a_guest_is_owed_if_it_lacks_any_of_it(lacks: int) -> None:
    machine = make_machine(memory=2 * GiB)
    balloon = make_balloon(machine)
    owed = (machine.actual or 0) + lacks
    monitor_of(balloon).owed_size = Note(owed)  # type: ignore[attr-defined]
    plan = run(balloon.plan_reclaim())
    assert plan.owed == (owed if lacks == LARGEST_PAGE else None)


def test_the_limit_that_binds_is_named() -> None:
    limits = GuestLimits(headroom=100 * MiB, floor=700 * MiB)
    for available, amount, binding, target in (
        (300 * MiB, None, "headroom", 824 * MiB),
        (900 * MiB, None, "floor", 700 * MiB),
        (900 * MiB, 10 * MiB, "amount", 1014 * MiB),
    ):
        plan = make_plan(limits, GiB, stats(available), amount)
        assert plan is not None
        assert (plan.binding, plan.target) == (binding, target)
    assert make_plan(limits, GiB, stats(None)) is None


def test_what_is_less_than_a_page_is_nothing() -> None:
    plan = make_plan(GuestLimits(headroom=0, floor=0), GiB, stats(GiB // 2), PAGE - 1)
    assert plan is not None
    assert (plan.amount, plan.describe()) == (
        0,
        "nothing to take: less than a page was asked for",
    )


@pytest.mark.parametrize(
    ("limits", "free", "least"),
    [
        ({}, 0, 0.0),
        ({"max_rate": 100 * MiB}, 0, 10.24),
        ({"gentle": 60}, 0, 60.0),
        ({"gentle": 60}, GiB, 0.0),  # what nothing uses is taken at once
    ],
)
def test_a_plan_takes_as_long_as_the_slowest_limit_and_giving_back(
    limits: dict[str, float], free: int, least: float
) -> None:
    allowed = GuestLimits(headroom=0, floor=0, **limits)  # type: ignore[arg-type]
    said = GuestStats(available=GiB, free=free)
    plan = make_plan(allowed, 2 * GiB, said)
    assert plan is not None
    assert plan.amount == GiB
    # Fast guests take and give a GiB in some two seconds.
    assert max(least, 1) < plan.seconds < max(least, 1) + 1
