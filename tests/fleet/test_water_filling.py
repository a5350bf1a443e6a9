"""Sharing out: nothing is lost, nobody gets more than it takes, levels are even."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.balloon.device import PAGE
from qmpballoon.fleet.water_filling import Vessel, pour
from qmpballoon.sizes import GiB, MiB

vessels = st.builds(
    Vessel,
    height=st.integers(-64 * GiB, 64 * GiB),
    width=st.sampled_from([0.5, 1.0, 2.0, 10.0]),
    limit=st.integers(0, 64 * GiB),
)


def test_the_lowest_are_filled_first() -> None:
    given = [Vessel(0, 1, GiB), Vessel(100 * MiB, 1, GiB), Vessel(900 * MiB, 1, GiB)]
    shares = pour(300 * MiB, given)
    assert shares == [200 * MiB, 100 * MiB, 0]


def test_twice_as_wide_takes_twice_as_much() -> None:
    narrow, wide = pour(300 * MiB, [Vessel(0, 1, GiB), Vessel(0, 2, GiB)])
    assert 0 <= 100 * MiB - narrow <= PAGE
    assert 0 <= 200 * MiB - wide <= PAGE


def test_nobody_is_nothing() -> None:
    assert pour(GiB, []) == []


@given(st.integers(0, 256 * GiB), st.lists(vessels))
def test_sums_and_limits(amount: int, given: list[Vessel]) -> None:
    shares = pour(amount, given)
    assert all(0 <= s <= v.limit for s, v in zip(shares, given, strict=True))
    assert all(share % PAGE == 0 for share in shares)
    possible = min(amount, sum(vessel.limit for vessel in given))
    assert 0 <= possible - sum(shares) <= PAGE * len(given)


@given(st.integers(0, 256 * GiB), st.lists(vessels, min_size=1))
def test_who_could_take_more_stands_no_lower_than_who_got_some(
    amount: int, given: list[Vessel]
) -> None:
    shares = pour(amount, given)
    levels = [(v.height + s) / v.width for v, s in zip(given, shares, strict=True)]
    wanting = [
        level
        for level, vessel, share in zip(levels, given, shares, strict=True)
        if share < vessel.limit - PAGE
    ]
    served = [level for level, share in zip(levels, shares, strict=True) if share]
    if wanting and served:
        slack = 3 * PAGE / min(vessel.width for vessel in given)
        assert max(served) <= min(wanting) + slack
