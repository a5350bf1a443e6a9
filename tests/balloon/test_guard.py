"""What a guest must keep has defaults that fit, and nonsense is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.balloon._pressure import PressureLimits
from qmpballoon.balloon._working_set import NO_REREAD_LIMITS, RereadLimits
from qmpballoon.balloon.guard import Guard, GuestLimits
from qmpballoon.sizes import GiB, MiB, TiB


@pytest.mark.parametrize(
    ("total", "headroom", "floor", "step"),
    [
        (512 * MiB, 74 * MiB, 64 * MiB, 128 * MiB),
        (16 * GiB, 392 * MiB, 512 * MiB, 512 * MiB),
        (512 * GiB, 10_550 * MiB, 16 * GiB, 16 * GiB),
    ],
)
def test_defaults_fit_small_and_large_guests(
    total: int, headroom: int, floor: int, step: int
) -> None:
    limits = Guard().compute_limits(total)
    assert limits.headroom == pytest.approx(headroom, rel=0.01)
    assert (limits.floor, limits.step) == (floor, step)


@given(st.integers(256 * MiB, 4 * TiB))
def test_defaults_leave_most_of_a_guest_to_be_had(total: int) -> None:
    limits = Guard().compute_limits(total)
    assert limits.headroom < total // 2
    assert limits.floor <= total // 4
    assert limits.step <= total // 2


def test_what_is_given_holds_whatever_the_size() -> None:
    guard = Guard(
        headroom=1,
        floor=2,
        step=3 * MiB,
        max_rate=4,
        gentle=9,
        stale_after=5,
        swap_rate=6,
        fault_rate=7,
        reread_within=8,
    )
    assert guard.compute_limits(TiB) == GuestLimits(
        headroom=1,
        floor=2,
        step=3 * MiB,
        max_rate=4,
        gentle=9,
        stale_after=5,
        pressure=PressureLimits(swap_rate=6, fault_rate=7, scanned=TiB // 16384),
        rereads=RereadLimits(within=8, rate=TiB // 1024),
    )


@given(st.integers(256 * MiB, 4 * TiB))
def test_headroom_is_bytes_or_a_share_or_both(total: int) -> None:
    for guard, headroom in (
        (Guard(headroom=MiB), MiB),
        (Guard(headroom_share=0.25), round(total / 4)),
        (Guard(headroom=MiB, headroom_share=0.25), MiB + round(total / 4)),
        (Guard(headroom_share=0), 0),
    ):
        assert guard.compute_limits(total).headroom == headroom


def test_what_is_missing_is_the_default_and_no_limit_is_a_word_of_its_own() -> None:
    missing = Guard(
        headroom=None, floor=None, step=None, swap_rate=None, fault_rate=None
    )
    assert missing.compute_limits(GiB) == Guard().compute_limits(GiB)
    pressure = Guard(swap_rate=math.inf).compute_limits(GiB).pressure
    assert math.isinf(pressure.swap_rate)
    assert not math.isinf(pressure.fault_rate)


def test_all_arguments_are_keywords() -> None:
    with pytest.raises(TypeError, match="positional"):
        Guard(64 * MiB)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"headroom": -1}, ValueError),
        ({"headroom_share": -0.1}, ValueError),
        ({"headroom_share": 5}, ValueError),
        ({"headroom_share": math.nan}, ValueError),
        ({"headroom_share": "5%"}, TypeError),
        ({"headroom_share": True}, TypeError),
        ({"swap_rate": 0}, ValueError),
        ({"fault_rate": "many"}, TypeError),
        ({"swap_rate": True}, TypeError),
        ({"max_rate": True}, TypeError),
        ({"headroom": 1.5}, TypeError),
        ({"floor": "1G"}, TypeError),
        ({"floor": True}, TypeError),
        ({"step": MiB - 1}, ValueError),
        ({"max_rate": 0}, ValueError),
        ({"max_rate": math.nan}, ValueError),
        ({"max_rate": "fast"}, TypeError),
        ({"stale_after": -1}, ValueError),
        ({"stale_after": math.nan}, ValueError),
        ({"stale_after": None}, TypeError),
        ({"gentle": -1}, ValueError),
        ({"gentle": math.nan}, ValueError),
        ({"gentle": math.inf}, ValueError),
        ({"gentle": "slowly"}, TypeError),
        ({"reread_within": -1}, ValueError),
        ({"reread_within": math.nan}, ValueError),
        ({"reread_within": "long"}, TypeError),
    ],
)
def test_nonsense_is_refused_in_one_line(
    wrong: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        Guard(**wrong)
    assert next(iter(wrong)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_ends_of_the_ranges_are_taken() -> None:
    for share in (0, 1):
        assert Guard(headroom_share=share).compute_limits(GiB).headroom == share * GiB
    assert Guard(step=MiB).compute_limits(GiB).step == MiB


def test_what_is_read_again_is_worth_more_the_longer_it_may_take() -> None:
    assert Guard(reread_within=0).compute_limits(GiB).rereads == NO_REREAD_LIMITS
    rates = [
        Guard(reread_within=seconds).compute_limits(GiB).rereads.rate
        for seconds in (1, 30, math.inf)
    ]
    assert rates == [128 * MiB, 128 * MiB / 30, 0]
    assert Guard().compute_limits(GiB).rereads == RereadLimits(30, rates[1])
