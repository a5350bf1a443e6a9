"""How to test an orchestrator of your own with guests that hypothesis makes up.

Run it with pytest. The fixture ``simulated_world`` is part of qmpballoon's pytest
plugin. It simulates guests and their QEMUs in memory, on a clock that jumps to the
next event, so that seconds of a guest's time take milliseconds.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from make_room import SMALLEST, make_room

from qmpballoon import GiB, Guard, open_balloon
from qmpballoon.testing import GuestConfig, MachineConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.testing import FakeQemu, Machine

MEMORY = 2 * GiB
HEADROOM = Guard().compute_limits(MEMORY).headroom

guests = st.builds(
    GuestConfig,
    used=st.integers(0, MEMORY // 2),
    cache=st.integers(0, MEMORY),
    driver=st.booleans(),
)


# Explaining a failure is left out: hypothesis would trace each line, which is slow.
PHASES = set(Phase) - {Phase.explain}


@settings(
    max_examples=25,
    deadline=None,
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    configs=st.lists(guests, min_size=1, max_size=3),
    wanted=st.integers(SMALLEST, 3 * GiB),
)
def test_no_guest_is_harmed(
    simulated_world: Callable[..., None], configs: list[GuestConfig], wanted: int
) -> None:
    async def world(*vms: FakeQemu) -> None:
        async with AsyncExitStack() as stack:
            balloons = [
                await stack.enter_async_context(
                    open_balloon(vm.connect(), wall_clock=vm.wall_clock)
                )
                for vm in vms
            ]
            before = [vm.do(available) for vm in vms]
            taken = await make_room(balloons, wanted)
            assert 0 <= taken <= wanted + SMALLEST
            sizes = [await balloon.actual() for balloon in balloons]
            assert taken == sum(MEMORY - size for size in sizes)
        for vm, was in zip(vms, before, strict=True):
            assert vm.do(available) >= min(was, HEADROOM) - SMALLEST
            assert vm.do(lambda machine: machine.guest.oom_kills) == 0

    machines = [MachineConfig(memory=MEMORY, guest=guest) for guest in configs]
    simulated_world(world, *machines)


def available(machine: Machine) -> int:
    """Return the memory that a guest really has available, in bytes."""
    return machine.guest.memory.available


if __name__ == "__main__":
    pytest.main([__file__])
