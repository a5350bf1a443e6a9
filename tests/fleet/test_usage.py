"""How fast a guest's use increases, and how much it can have used since it answered."""

from __future__ import annotations

import pytest

from qmpballoon.fleet.usage import UsageBound, UsageRate
from qmpballoon.sizes import GiB


def test_two_samples_of_one_moment_are_no_rate() -> None:
    rate = UsageRate()
    rate.add_sample(1.0, 100)
    rate.add_sample(2.0, 150)
    rate.add_sample(2.0, 400)
    assert rate.rate == 50


def test_the_rate_is_that_of_the_last_two_samples() -> None:
    rate = UsageRate()
    for at, used, expected in [(1.0, 100, 0), (3.0, 200, 50), (4.0, 500, 300)]:
        rate.add_sample(at, used)
        assert rate.rate == expected
    rate.add_sample(5.0, 400)
    assert rate.rate == 0


def test_of_samples_that_come_close_together_some_are_skipped() -> None:
    rate = UsageRate()
    for at, used, expected in [(1.0, 100, 0), (1.9, 900, 0), (2.0, 200, 100)]:
        rate.add_close_sample(at, used)
        assert rate.rate == expected


@pytest.mark.parametrize(("period", "increase"), [(0.1, 50), (1, 50), (4, 200)])
def test_the_use_is_predicted_for_a_second_at_least(
    period: float, increase: int
) -> None:
    rate = UsageRate(rate=50)
    assert rate.predict_increase(period) == increase


def answered(before: float | None, *, age: float | None = 0.5) -> UsageBound:
    """Return the bound of a guest that had run so long by its first turn.

    It had its second turn a second later, when its answer was seen.
    """
    bound = UsageBound()
    bound.note_turn(1.0, before)
    bound.note_turn(2.0, 11.0)
    bound.note_answer(2.0, age)
    return bound


def test_what_runs_for_a_second_can_fill_twenty_gigabytes() -> None:
    bound = answered(10.0)
    assert bound.compute() == 20 * GiB  # between its answer and the next turn
    bound.note_turn(3.0, 11.5)
    assert bound.compute() == 30 * GiB


def test_an_answer_counts_from_the_last_turn_before_it() -> None:
    """It can be from before a burst that was over before the poll."""
    assert answered(10.0, age=0.0).compute() == 0
    assert answered(10.0, age=0.1).compute() == 20 * GiB
    assert answered(10.0, age=1.0).compute() == 20 * GiB


@pytest.mark.parametrize("age", [None, -1.0, 1.1], ids=str)
def test_an_answer_of_no_known_time_bounds_nothing(age: float | None) -> None:
    bound = answered(10.0)
    bound.note_answer(2.0, age)
    assert bound.compute() is None


@pytest.mark.parametrize(
    ("before", "ran"), [(None, 11.0), (10.0, None), (10.0, 9.0)], ids=str
)
def test_what_may_have_run_for_any_time_is_not_bounded(
    before: float | None, ran: float | None
) -> None:
    bound = answered(before)
    bound.note_turn(3.0, ran)  # the last is another process than before
    assert bound.compute() is None


def test_before_its_first_turn_nothing_is_known() -> None:
    bound = UsageBound()
    assert bound.compute() is None
    bound.note_answer(1.0, 0.5)
    assert bound.compute() is None


def test_an_answer_as_old_as_the_longest_wait_is_found() -> None:
    bound = UsageBound()
    for turn in range(6):
        bound.note_turn(turn, float(turn))
    bound.note_answer(5.0, 4.5)
    assert bound.compute() == 5 * 20 * GiB
