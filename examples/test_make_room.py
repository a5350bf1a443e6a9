"""How to test an orchestrator of your own with guests that hypothesis makes up.

Run it with pytest. It needs the extra ``testing``, whose pytest plugin has the fixture
``simulated_world``: guests and their QEMUs in memory, on a clock that jumps to the next
event, so that seconds of a guest's time take milliseconds.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from hypothesis import given, settings
from make_room import SMALLEST, make_room

from qmpballoon import GiB, Guard, open_balloon
from qmpballoon.testing.strategies import fleets, register_profile, shares

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.testing import FakeQemu, MachineConfig

MEMORY = 2 * GiB
MOST = 3  # VMs
HEADROOM = Guard().compute_limits(MEMORY).headroom


@settings(register_profile(), max_examples=25)
@given(configs=fleets(MEMORY, largest=MOST), wanted=shares(MOST * MEMORY))
def test_no_guest_is_harmed(
    simulated_world: Callable[..., None], configs: list[MachineConfig], wanted: int
) -> None:
    async def world(*vms: FakeQemu) -> None:
        before = [vm.available for vm in vms]
        spare = [was for vm, was in zip(vms, before, strict=True) if answers(vm)]
        async with AsyncExitStack() as stack:
            balloons = [
                await stack.enter_async_context(
                    open_balloon(vm.connect(), wall_clock=vm.wall_clock)
                )
                for vm in vms
            ]
            taken = await make_room(balloons, wanted)
        assert 0 <= taken <= wanted + SMALLEST
        assert taken == sum(MEMORY - vm.actual for vm in vms)
        for vm, was in zip(vms, before, strict=True):
            assert vm.available >= min(was, HEADROOM) - SMALLEST
            assert vm.oom_kills == 0
        # Doing nothing harms nobody, either: something was taken where it could be.
        assert taken > 0 or max(spare, default=0) < 2 * HEADROOM

    simulated_world(world, *configs)


def answers(vm: FakeQemu) -> bool:
    """Tell whether a guest has a balloon driver, and reports its memory."""
    guest = vm.machine.config.guest
    return guest.driver and guest.stats_delay is not None
