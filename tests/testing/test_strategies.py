"""What the strategies draw is what they promise."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from qmpballoon import StatsUnavailable, open_balloon
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import simulate
from qmpballoon.testing.strategies import (
    fleets,
    guest_stats,
    profiles,
    register_profile,
    shares,
    sizes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmpballoon import Balloon
    from qmpballoon.testing import FakeQemu, MachineConfig, Profile


@given(version=profiles(), data=st.data())
def test_drawn_statistics_have_the_versions_names(
    version: Profile, data: st.DataObject
) -> None:
    stats = data.draw(guest_stats(version))
    assert {name.removeprefix("stat-") for name in stats} == set(version.stat_names)


@given(size=sizes(MiB, GiB))
def test_sizes_are_within_their_bounds(size: int) -> None:
    assert MiB <= size <= GiB


def test_a_planted_bug_is_found_within_100_examples() -> None:
    async def borrow(balloons: Sequence[Balloon], wanted: int) -> None:
        """Take memory from several guests, and give it back to the first of them."""
        shrunk: list[tuple[Balloon, int]] = []
        for balloon in balloons:
            with suppress(StatsUnavailable):
                report = await balloon.reclaim(wanted, hold=True)
                if report.held:
                    shrunk.append((balloon, report.before.actual))
                wanted -= report.handed_over
            if wanted < MiB:
                break
        for balloon, size in shrunk[:1]:  # the bug
            await balloon.resize(size)

    @settings(register_profile(), max_examples=100, phases=[Phase.generate])
    @given(configs=fleets(), wanted=shares(8 * GiB))
    def property_of_all(configs: list[MachineConfig], wanted: int) -> None:
        async def world(*vms: FakeQemu) -> list[int]:
            async with AsyncExitStack() as stack:
                balloons = [
                    await stack.enter_async_context(
                        open_balloon(vm.connect(), wall_clock=vm.wall_clock)
                    )
                    for vm in vms
                ]
                await borrow(balloons, wanted)
            return [vm.actual for vm in vms]

        assert set(simulate(world, *configs)) == {2 * GiB}

    with pytest.raises(AssertionError):
        property_of_all()


def test_the_profile_explains_nothing_and_has_no_deadline() -> None:
    profile = register_profile("of-this-test")
    assert Phase.explain not in profile.phases
    assert Phase.shrink in profile.phases
    assert profile.deadline is None
    assert settings.get_profile("of-this-test") == profile
