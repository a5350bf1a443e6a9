"""When a guest is in trouble, and for how long it can be left unobserved."""

from __future__ import annotations

import pytest

from qmpballoon.balloon._alarms import Alarms, compute_pause
from qmpballoon.balloon.guard import GuestLimits
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.sizes import GiB, MiB

LIMITS = GuestLimits(headroom=100 * MiB, floor=64 * MiB, stale_after=3)


@pytest.mark.parametrize(
    ("available", "in_trouble", "is_short"),
    [
        (100 * MiB, False, False),
        (75 * MiB, False, False),
        (75 * MiB - 1, False, True),
        (50 * MiB, False, True),
        (50 * MiB - 1, True, True),
        (0, True, True),
    ],
)
def test_a_guest_is_short_below_three_quarters_and_in_trouble_below_half(
    available: int, *, in_trouble: bool, is_short: bool
) -> None:
    alarms = Alarms(LIMITS, GuestStats(available=GiB))
    trouble = alarms.find_trouble(GuestStats(available=available), 0.0)
    assert (trouble is not None) is in_trouble
    assert alarms.is_short(available) is is_short


def test_a_guest_that_had_less_than_its_headroom_is_expected_to_keep_that() -> None:
    alarms = Alarms(LIMITS, GuestStats(available=40 * MiB))
    assert alarms.find_trouble(GuestStats(available=20 * MiB), 0.0) is None
    trouble = alarms.find_trouble(GuestStats(available=19 * MiB), 0.0)
    assert trouble == "the guest has 19 MiB available, and is to keep 100 MiB"


@pytest.mark.parametrize(
    ("first", "now", "silence", "words"),
    [
        (0, 0, 3.0, None),
        (0, 0, 3.1, "has not answered for 3.1 s"),
        (1, 1, 0.0, None),
        (1, 2, 0.0, "killed a process"),
        (None, 2, 0.0, None),
        (1, None, 0.0, None),
    ],
)
def test_silence_and_killed_processes_are_trouble(
    first: int | None, now: int | None, silence: float, words: str | None
) -> None:
    alarms = Alarms(LIMITS, GuestStats(available=GiB, oom_kills=first))
    trouble = alarms.find_trouble(GuestStats(available=GiB, oom_kills=now), silence)
    assert (words or "") in (trouble or "")
    assert (trouble is None) is (words is None)


def test_a_guest_that_no_longer_reports_is_in_trouble() -> None:
    alarms = Alarms(LIMITS, GuestStats(available=GiB))
    assert "no longer says" in (alarms.find_trouble(GuestStats(), 0.0) or "")


def test_a_guest_that_allocates_a_gib_a_second_is_looked_at_twice() -> None:
    assert compute_pause(GiB) == 0.5
    assert compute_pause(0) == 0
