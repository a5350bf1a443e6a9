"""What the strategies draw is what they promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing.strategies import guest_stats, profiles, sizes

if TYPE_CHECKING:
    from qmpballoon.testing import Profile


@given(version=profiles(), data=st.data())
def test_drawn_statistics_have_the_versions_names(
    version: Profile, data: st.DataObject
) -> None:
    stats = data.draw(guest_stats(version))
    assert {name.removeprefix("stat-") for name in stats} == set(version.stat_names)


@given(size=sizes(MiB, GiB))
def test_sizes_are_within_their_bounds(size: int) -> None:
    assert MiB <= size <= GiB
