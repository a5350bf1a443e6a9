"""The values that the calls return: their figures add up, and people can read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.balloon._plan import make_plan
from qmpballoon.balloon.device import PAGE
from qmpballoon.balloon.guard import GuestLimits
from qmpballoon.balloon.results import BalloonInfo
from qmpballoon.balloon.stats import GuestStats
from qmpballoon.sizes import GiB

if TYPE_CHECKING:
    from qmpballoon.balloon.results import Plan

pages = st.integers(1, 4 * GiB // PAGE).map(lambda count: count * PAGE)
figures = st.none() | st.integers(0, 2**63 - 1)
plans = st.builds(
    make_plan,
    st.builds(
        GuestLimits, headroom=st.integers(0, 2 * GiB), floor=st.integers(0, 2 * GiB)
    ),
    pages,
    st.builds(
        GuestStats, available=figures, free=figures, disk_caches=st.just(GiB)
    ).filter(lambda said: said.reclaimable is not None),
    st.none() | st.integers(1, 4 * GiB),
)


def test_what_is_in_the_balloon_is_what_the_guest_has_not() -> None:
    assert BalloonInfo(3 * GiB, 4 * GiB).ballooned == GiB
    assert BalloonInfo(3 * GiB).ballooned is None


@given(plans)
def test_the_figures_of_a_plan_add_up(plan: Plan | None) -> None:
    assert plan is not None
    assert plan.target == plan.actual - plan.amount
    assert plan.amount == plan.from_free + plan.from_cache
    assert min(plan.from_free, plan.from_cache, plan.amount) >= 0
    assert plan.amount % PAGE == 0
    if plan.amount:
        assert plan.target >= plan.floor
        assert plan.amount <= plan.available - plan.headroom
        assert plan.seconds > 0


@given(plans)
def test_a_plan_can_be_read(plan: Plan | None) -> None:
    assert plan is not None
    text = plan.describe()
    assert "\n" not in text
    # Sizes are written for people, not counted out.
    assert not re.search(r"\d{6}|bytes", text)
    assert text.startswith("nothing to take: ") == (plan.amount == 0)
