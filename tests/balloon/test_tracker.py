"""A stall is a rate below a limit over a window; all else is progress."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qmpballoon.balloon._tracker import (
    STRAY,
    StallLimits,
    Tracker,
    compute_stall_limits,
)
from qmpballoon.balloon.device import LARGEST_PAGE, PAGE
from qmpballoon.sizes import GiB, MiB

limits = st.builds(
    StallLimits, rate=st.floats(PAGE, 64 * MiB), window=st.floats(0.5, 60.0)
)
sizes = st.integers(0, 64 * GiB // PAGE).map(lambda pages: pages * PAGE)


@given(sizes, sizes, limits, st.floats(1.01, 100), st.data())
def test_a_balloon_above_the_limit_never_stalls(
    start: int, target: int, limit: StallLimits, times: float, data: st.DataObject
) -> None:
    tracker = Tracker(target, start, 0.0, limit)
    now = 0.0
    for _ in range(30):
        now += data.draw(st.floats(0.001, limit.window))
        moved = min(abs(target - start), math.ceil(limit.rate * times * now))
        actual = start + moved if target > start else start - moved
        # At the target at the latest when the way is done.
        assert tracker.observe(now, actual) != "stalled"


@given(sizes, sizes, limits, st.floats(0, 0.9), st.data())
def test_a_balloon_below_the_limit_stalls_soon_after_a_window(
    start: int, target: int, limit: StallLimits, share: float, data: st.DataObject
) -> None:
    distance = abs(target - start)
    assume(distance > limit.rate * limit.window * 4 + LARGEST_PAGE)
    tracker, now, phase = Tracker(target, start, 0.0, limit), 0.0, ""
    while now <= limit.window * 2:
        now += data.draw(st.floats(limit.window / 10, limit.window / 2))
        moved = int(limit.rate * share * now)
        actual = start + moved if target > start else start - moved
        phase = tracker.observe(now, actual)
        if now < limit.window:
            assert phase != "stalled"
    assert phase == "stalled"


@given(st.integers(1, 63), st.floats(0.01, 0.5))
def test_hovering_is_a_stall(swing: int, pause: float) -> None:
    tracker, now, steps = Tracker(0, GiB, 0.0), 0.0, 0
    phase = tracker.phase
    while phase != "stalled":
        now, steps = now + pause, steps + 1
        phase = tracker.observe(now, GiB - (steps % 2) * swing * MiB)
        assert now < 12, "it was never seen"


def test_hovering_far_is_a_stall_after_some_jumps() -> None:
    tracker, now, steps = Tracker(0, GiB, 0.0), 0.0, 0
    while tracker.phase != "stalled":
        now, steps = now + 1, steps + 1
        tracker.observe(now, GiB - (steps % 2) * 512 * MiB)
        assert now < 60, "it was never seen"
    assert tracker.jumps == 3


def test_a_jump_back_begins_anew() -> None:
    # As after a reset: the way back is not to count against it.
    tracker = Tracker(GiB, 2 * GiB, 0.0)
    for now in range(1, 6):
        assert tracker.observe(now, 2 * GiB - now * 100 * MiB) == "moving"
    assert tracker.observe(6, 2 * GiB) != "stalled"
    assert tracker.jumps == 1
    for now in range(7, 12):
        assert tracker.observe(now, 2 * GiB - (now - 6) * 10 * MiB) != "stalled"


def test_a_balloon_that_goes_back_as_it_was_asked_to_is_not_thrown_back() -> None:
    # As a guest does that begins to need memory on its way.
    tracker = Tracker(GiB, 2 * GiB, 0.0)
    tracker.observe(1, 1100 * MiB, asked=GiB)
    # By the time it is seen it may be on its way down again.
    tracker.observe(2, 1110 * MiB, asked=2 * GiB)
    tracker.observe(3, 2 * GiB, asked=1500 * MiB)
    assert (tracker.jumps, tracker.moved) == (0, True)
    # Its way down is not to count against it nevertheless.
    for now in range(4, 9):
        size = 2 * GiB - (now - 3) * 100 * MiB
        assert tracker.observe(now, size, asked=size) != "stalled"
    # It was not asked to do so this time.
    tracker.observe(9, 2 * GiB, asked=1548 * MiB)
    assert tracker.jumps == 1


@pytest.mark.parametrize(("start", "target"), [(2 * GiB, GiB), (GiB, 2 * GiB)])
def test_a_guest_with_large_pages_arrives(start: int, target: int) -> None:
    tracker = Tracker(target, start, 0.0)
    near = target - LARGEST_PAGE + PAGE
    assert tracker.observe(1, near) not in {"reached", "stalled"}
    assert tracker.observe(7, near) == "reached"


def test_a_page_off_is_not_there() -> None:
    tracker = Tracker(GiB, 2 * GiB, 0.0)
    assert tracker.observe(1, GiB + PAGE) != "reached"
    assert tracker.observe(2, GiB + PAGE - 1) == "reached"  # QEMU rounds up


def test_phases_on_the_way() -> None:
    tracker = Tracker(GiB, 4 * GiB, 0.0)
    assert tracker.observe(1, 4 * GiB) == "waiting"
    assert tracker.observe(2, 3 * GiB) == "moving"
    assert tracker.observe(3, 3 * GiB - 10 * MiB) != "stalled"
    assert tracker.observe(4, 3 * GiB - 20 * MiB) == "slowing"
    assert tracker.observe(20, 3 * GiB - 21 * MiB) == "stalled"
    assert tracker.observe(21, GiB) == "reached"


def test_time_left_is_the_distance_at_the_present_rate() -> None:
    tracker = Tracker(0, 4 * GiB, 0.0)
    assert tracker.time_left is None
    for tenth in range(1, 31):
        tracker.observe(tenth / 10, 4 * GiB - tenth * 100 * MiB)
    assert tracker.rate == pytest.approx(1000 * MiB, rel=0.1)
    assert tracker.time_left == pytest.approx((4 * GiB - 3000 * MiB) / tracker.rate)
    assert tracker.elapsed == 3


def test_the_rate_dies_down_when_nothing_moves() -> None:
    tracker = Tracker(0, GiB, 0.0)
    tracker.observe(1, GiB // 2)
    for now in range(2, 40):
        tracker.observe(now, GiB // 2)
    assert tracker.time_left is None


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0}, {"rate": -1}, {"rate": math.nan}, {"window": 0}, {"window": -1}],
)
def test_limits_under_which_nothing_ever_stalls_are_refused(
    wrong: dict[str, float],
) -> None:
    with pytest.raises(ValueError, match="must be"):
        StallLimits(**wrong)


def test_only_what_moved_within_the_window_counts() -> None:
    tracker = Tracker(0, 4 * GiB, 0.0, StallLimits(window=5.0))
    assert tracker.observe(5.0, 3 * GiB) != "stalled"
    # The window begins with the look at 5 seconds.
    assert tracker.observe(10.0, 3 * GiB) == "stalled"
    assert tracker.stopped


def test_what_still_moves_has_not_stopped() -> None:
    tracker = Tracker(0, 4 * GiB, 0.0, StallLimits(rate=MiB, window=5.0))
    tracker.observe(5.0, 3 * GiB)
    assert not tracker.stopped
    assert tracker.observe(10.0, 3 * GiB - MiB) == "stalled"  # too slow
    assert not tracker.stopped


def test_two_looks_at_one_moment_are_no_rate() -> None:
    tracker = Tracker(0, 4 * GiB, 0.0)
    tracker.observe(1.0, 3 * GiB)
    rate = tracker.rate
    tracker.observe(1.0, 2 * GiB)
    assert tracker.rate == rate


def test_a_large_page_off_is_not_there() -> None:
    for off, phase in [(LARGEST_PAGE - PAGE, "reached"), (LARGEST_PAGE, "stalled")]:
        tracker = Tracker(0, off, 0.0, StallLimits(window=5.0))
        assert tracker.observe(5.0, off) == phase


def test_much_farther_than_before_is_astray() -> None:
    tracker = Tracker(0, 4 * GiB, 0.0)
    tracker.observe(1.0, 4 * GiB + STRAY)
    assert not tracker.strayed
    tracker.observe(2.0, 4 * GiB + STRAY + PAGE)
    assert tracker.strayed
    tracker.observe(3.0, 3 * GiB)
    assert not tracker.strayed


def test_that_it_was_asked_back_counts_until_it_comes_nearer() -> None:
    tracker = Tracker(0, GiB, 0.0)
    tracker.observe(1.0, GiB, asked=3 * GiB)
    tracker.observe(2.0, GiB)  # it has not moved yet
    tracker.observe(3.0, 3 * GiB)
    assert tracker.jumps == 0


def test_it_has_moved_once_it_moved_wherever_it_is_now() -> None:
    tracker = Tracker(0, 4 * GiB, 0.0)
    assert not tracker.moved
    tracker.observe(1.0, 4 * GiB)
    assert not tracker.moved
    tracker.observe(2.0, 4 * GiB - MiB)
    assert tracker.moved
    tracker.observe(3.0, 4 * GiB)
    assert tracker.moved


def test_the_nearest_is_that_of_all_looks() -> None:
    tracker = Tracker(0, 4 * GiB, 0.0)
    for second, size in enumerate([3 * GiB, 2 * GiB, 2 * GiB + MiB], 1):
        tracker.observe(second, size)
    assert tracker.nearest == 2 * GiB


def test_what_stops_at_once_has_stopped_when_it_counts_as_stalled() -> None:
    tracker = Tracker(0, 4 * GiB, 0.0, StallLimits(rate=MiB, window=5.0))
    # Its last progress is within the window, and less than the limit.
    for tenth, size in [(9, 3 * GiB + 4 * MiB), (11, 3 * GiB), (59, 3 * GiB)]:
        tracker.observe(tenth / 10, size)
    assert tracker.phase == "stalled"
    assert tracker.stopped


def test_what_moves_at_the_end_of_a_window_has_not_stopped() -> None:
    tracker = Tracker(0, 4 * GiB, 0.0, StallLimits(rate=MiB, window=5.0))
    for second, size in [(1.0, 3 * GiB), (3.0, 3 * GiB), (6.0, 3 * GiB - MiB)]:
        tracker.observe(second, size)
    assert tracker.phase == "stalled"
    assert not tracker.stopped


def test_the_rate_of_the_limit_is_no_stall() -> None:
    for less, phase in [(0, "moving"), (PAGE, "stalled")]:
        tracker = Tracker(0, 4 * GiB, 0.0, StallLimits(rate=MiB, window=5.0))
        assert tracker.observe(5.0, 4 * GiB - 5 * MiB + less) == phase


def test_only_what_goes_back_far_was_thrown_back() -> None:
    for more, jumps in [(0, 0), (PAGE, 1)]:
        tracker = Tracker(0, 4 * GiB, 0.0)
        tracker.observe(1.0, 3 * GiB)
        tracker.observe(2.0, 3 * GiB + 64 * MiB + more)
        assert tracker.jumps == jumps


def test_a_balloon_that_may_move_slowly_is_given_more_time() -> None:
    usual = StallLimits()
    assert compute_stall_limits(math.inf) == usual
    # A quarter of what it may take is no stall, and a large page has time to come.
    assert compute_stall_limits(usual.rate) == StallLimits(
        usual.rate / 4, max(usual.window, LARGEST_PAGE / (usual.rate / 4))
    )
    slow = compute_stall_limits(16 * 1024)
    assert (slow.rate, slow.window) == (4 * 1024, LARGEST_PAGE / (4 * 1024))
    assert slow.window > usual.window


def test_time_counts_from_the_beginning() -> None:
    tracker = Tracker(0, GiB, 100.0)
    tracker.observe(103.0, GiB)
    assert tracker.elapsed == 3.0
