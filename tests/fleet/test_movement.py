"""What a guest was granted, how fast it moves, and whether somebody else moves it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.fleet.movement import Pace, Promise, Stray
from qmpballoon.sizes import GiB, MiB

moments = st.integers(0, 1000).map(float)
amounts = st.integers(0, 64 * GiB)


def test_a_grant_counts_until_the_host_sees_that_it_was_touched() -> None:
    promise = Promise()
    promise.add(0.0, 512 * MiB)
    promise.observe(600 * MiB)
    assert promise.count(1e6) == 512 * MiB
    promise.observe(100 * MiB)
    assert promise.count(1e6) == 100 * MiB
    promise.observe(GiB)  # what it gives up later is no promise
    assert promise.count(1e6) == 100 * MiB


def test_where_the_host_cannot_see_that_a_grant_counts_for_half_a_minute() -> None:
    promise = Promise()
    promise.add(0.0, MiB)
    promise.add(10.0, 2 * MiB)
    promise.observe(None)
    assert promise.count(30.0) == 3 * MiB
    assert promise.count(31.0) == 2 * MiB
    assert promise.count(41.0) == 0


def test_a_grant_counts_for_half_a_minute_once_nothing_is_seen_any_more() -> None:
    promise = Promise()
    promise.add(0.0, MiB)
    promise.observe(GiB)
    for lost_at in (100.0, 120.0):  # it is lost once
        promise.note_lost(lost_at)
    assert promise.count(130.0) == MiB
    assert promise.count(131.0) == 0


@given(st.lists(st.tuples(st.booleans(), amounts)))
def test_never_more_than_was_granted_and_never_more_than_is_untouched(
    steps: list[tuple[bool, int]],
) -> None:
    promise, granted = Promise(), 0
    for is_grant, size in steps:
        if is_grant:
            promise.add(0.0, size)
            granted += size
        else:
            before = promise.count(0.0)
            promise.observe(size)
            assert promise.count(0.0) == min(before, size)
        assert 0 <= promise.count(0.0) <= granted


def test_what_did_not_reach_the_guest_is_no_promise() -> None:
    promise = Promise()
    promise.add(0.0, GiB)
    promise.add(1.0, 512 * MiB)
    promise.withdraw(300 * MiB)
    assert promise.count(1.0) == GiB + 212 * MiB
    promise.withdraw(2 * GiB)
    assert promise.count(1.0) == 0


def test_a_move_is_given_two_seconds_to_show_how_fast_it_is() -> None:
    pace = Pace(10.0)
    pace.add_sample(11.0, GiB)
    assert pace.predict(11.9) is None
    assert pace.predict(12.0) == 0


def test_a_move_counts_for_what_it_delivers_in_two_seconds() -> None:
    pace = Pace(0.0)
    for tenth in range(60):
        pace.add_sample(tenth / 10, 8 * GiB - tenth * 10 * MiB)
    predicted = pace.predict(6.0)
    assert predicted is not None
    assert 180 * MiB < predicted < 220 * MiB


def test_only_the_last_two_seconds_count_for_the_pace() -> None:
    pace = Pace(0.0)
    for second, size in enumerate([8192, 4096, 4086, 4076]):
        pace.add_sample(float(second), size * MiB)
    assert pace.predict(3.0) == 20 * MiB


def test_whoever_falls_silent_delivers_nothing() -> None:
    pace = Pace(0.0)
    for second in range(4):
        pace.add_sample(float(second), (8 - second) * GiB)
    assert pace.predict(3.0) == 2 * GiB
    assert (pace.predict(5.0) or 0) < GiB
    assert pace.predict(8.0) == 0


@given(st.lists(st.tuples(moments, amounts), max_size=30), moments)
def test_no_pace_is_negative(samples: list[tuple[float, int]], now: float) -> None:
    pace = Pace(0.0)
    for at, actual in sorted(samples):
        pace.add_sample(at, actual)
    latest = max([now, 2.0, *(at for at, _ in samples)])
    predicted = pace.predict(latest)
    assert predicted is not None
    assert predicted >= 0


def stray(*sizes: int, left_at: int = 2048) -> list[bool]:
    """Return, for each second, whether somebody else was seen to move it."""
    seen = Stray()
    seen.leave_at(0.0, left_at * MiB)
    found = []
    for second, size in enumerate(sizes, 1):
        seen.observe(float(second), size * MiB)
        found.append(seen.was_moved(float(second)))
    return found


def test_a_guest_that_stays_is_moved_by_nobody() -> None:
    assert not any(stray(*[2048, 2047, 2048, 2049] * 10))


def test_a_size_that_changes_and_stays_is_somebody_elses_doing() -> None:
    found = stray(*[1024] * 20)
    assert found.index(True) == 5
    assert sum(found) == 1  # told once: that is its size from now on


def test_somebody_who_sets_target_after_target_is_noticed_within_seconds() -> None:
    assert stray(1800, 1500, 1200, 900).index(True) == 2


def test_a_restart_is_nobodys_doing() -> None:
    # It has all of its RAM until its driver inflates the balloon again.
    assert not any(stray(4096, 3500, 3000, 2500, 2048, *[2048] * 10))


def test_a_guest_that_is_found_on_its_way_is_left_to_come_to_rest() -> None:
    seen = Stray()
    for second, size in enumerate([4000, 3000, 2000, 1500, 1024, *[1024] * 20]):
        assert not seen.observe(float(second), size * MiB)
        assert not seen.was_moved(float(second))
    assert seen.observe(30.0, 2048 * MiB)


def test_a_guests_own_rounding_is_no_movement() -> None:
    seen = Stray()
    seen.observe(0.0, GiB)
    assert not seen.observe(1.0, GiB + 4 * MiB)  # it has come to rest
    assert not seen.observe(2.0, GiB + 8 * MiB)
    assert seen.observe(3.0, GiB + 13 * MiB)


def test_plugged_memory_is_nobodys_doing() -> None:
    seen = Stray()
    seen.leave_at(0.0, 2 * GiB)
    for second in (1.0, 2.0, 3.0):
        assert seen.observe(second, int(2 + second) * GiB)
        seen.shift(GiB)
        assert not seen.was_moved(second)
    seen.shift(GiB)  # this time it is known before it is seen
    for second in range(4, 60):
        assert not seen.observe(float(second), 6 * GiB)
        assert not seen.was_moved(float(second))
