"""A timeline keeps what matters of any number of samples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.balloon.sampling import Sample, Timeline


def sample(t: float, mark: str | None = None) -> Sample:
    return Sample(t=t, target=None, actual=1, mark=mark)


def filled(count: int, capacity: int, marked: frozenset[int] = frozenset()) -> Timeline:
    timeline = Timeline(capacity)
    for t in range(count):
        timeline.add(sample(t, "!" if t in marked else None))
    return timeline


@given(st.integers(1, 200), st.integers(2, 40), st.frozensets(st.integers(0, 200)))
def test_it_is_bounded_in_order_and_keeps_both_ends(
    count: int, capacity: int, marked: frozenset[int]
) -> None:
    timeline = filled(count, capacity, marked)
    times = [kept.t for kept in timeline]
    assert len(timeline) == len(times) <= capacity
    assert times == sorted(set(times))
    assert (timeline[0].t, timeline[-1].t) == (0, count - 1)
    if count <= capacity:
        assert times == [*range(count)]
    else:
        assert len(timeline) >= capacity // 2


@given(st.integers(1, 2000), st.frozensets(st.integers(0, 1999), max_size=5))
def test_a_few_marked_samples_stay(count: int, marked: frozenset[int]) -> None:
    times = {kept.t for kept in filled(count, 20, marked)}
    assert {t for t in marked if t < count} <= times


def test_time_does_not_go_back() -> None:
    timeline = filled(3, 10)
    timeline.add(sample(2))
    with pytest.raises(ValueError, match="older than the last one"):
        timeline.add(sample(1.9))


@pytest.mark.parametrize("capacity", [1, 0, -1])
def test_it_cannot_hold_less_than_both_ends(capacity: int) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Timeline(capacity)


def test_json_has_every_field_of_every_sample() -> None:
    printed = filled(2, 10).to_json()
    assert [each["t"] for each in printed] == [0, 1]
    assert {"target", "actual", "free", "available", "disk_caches", "resident"} <= {
        *printed[0]
    }
