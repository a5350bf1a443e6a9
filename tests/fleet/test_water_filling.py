"""Sharing out: nothing is lost, nobody gets more than it takes, levels are even."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.balloon.device import PAGE
from qmpballoon.fleet.water_filling import Recipient, fill
from qmpballoon.sizes import GiB, MiB

recipients = st.builds(
    Recipient,
    filled=st.integers(-64 * GiB, 64 * GiB),
    weight=st.sampled_from([0.5, 1.0, 2.0, 10.0]),
    limit=st.integers(0, 64 * GiB),
)


def test_the_lowest_are_filled_first() -> None:
    given = [
        Recipient(0, 1, GiB),
        Recipient(100 * MiB, 1, GiB),
        Recipient(900 * MiB, 1, GiB),
    ]
    shares = fill(300 * MiB, given)
    assert shares == [200 * MiB, 100 * MiB, 0]


def test_twice_as_wide_takes_twice_as_much() -> None:
    narrow, wide = fill(300 * MiB, [Recipient(0, 1, GiB), Recipient(0, 2, GiB)])
    assert 0 <= 100 * MiB - narrow <= PAGE
    assert 0 <= 200 * MiB - wide <= PAGE


def test_nobody_is_nothing() -> None:
    assert fill(GiB, []) == []


@given(st.integers(0, 256 * GiB), st.lists(recipients))
def test_sums_and_limits(amount: int, given: list[Recipient]) -> None:
    shares = fill(amount, given)
    assert all(0 <= s <= v.limit for s, v in zip(shares, given, strict=True))
    assert all(share % PAGE == 0 for share in shares)
    possible = min(amount, sum(recipient.limit for recipient in given))
    assert 0 <= possible - sum(shares) <= PAGE * len(given)


@given(st.integers(0, 256 * GiB), st.lists(recipients, min_size=1))
def test_who_could_take_more_stands_no_lower_than_who_got_some(
    amount: int, given: list[Recipient]
) -> None:
    shares = fill(amount, given)
    levels = [(v.filled + s) / v.weight for v, s in zip(given, shares, strict=True)]
    wanting = [
        level
        for level, recipient, share in zip(levels, given, shares, strict=True)
        if share < recipient.limit - PAGE
    ]
    served = [level for level, share in zip(levels, shares, strict=True) if share]
    if wanting and served:
        slack = 3 * PAGE / min(recipient.weight for recipient in given)
        assert max(served) <= min(wanting) + slack
