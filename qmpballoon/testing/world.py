"""Simulated VMs for a trio function, in memory and on a clock that jumps.

::

    async def reclaim(vm: FakeQemu) -> int:
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            return (await balloon.reclaim()).handed_over

    assert simulate(reclaim, MachineConfig(memory=16 << 30)) > 8 << 30

The clock is trio's ``MockClock``. It jumps to the next event, so a minute of a VM's
life takes a fraction of a second.

The result depends on the arguments only. Under hypothesis' ``@given`` trio schedules
tasks deterministically, so the same example is the same run. To search for bugs in the
order of tasks, draw ``hypothesis.strategies.random_module()`` as well.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING, TypeVar

import trio
from trio.testing import MockClock

from qmpballoon.testing.faults import NO_FAULTS, FaultPlan
from qmpballoon.testing.model.config import MachineConfig
from qmpballoon.testing.model.machine import Machine
from qmpballoon.testing.model.profiles import profile
from qmpballoon.testing.server import FakeQemu, open_fake

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["run_world", "simulate"]

T = TypeVar("T")


def simulate(
    main: Callable[..., Awaitable[T]],
    *configs: MachineConfig,
    version: str = "10.0",
    seed: int = 0,
    faults: FaultPlan = NO_FAULTS,
    limit: float = 3600.0,
) -> T:
    """Run a trio function against simulated VMs, on a clock that jumps.

    Args:
        main: The function. It is called with a :class:`~qmpballoon.testing.FakeQemu`
            for each of the ``configs``. When it returns, the VMs end.
        configs: The VMs. By default there is one of 2 GiB, of which 1 GiB is page
            cache.
        version: Their QEMU's version, one of
            :data:`~qmpballoon.testing.PROFILES`.
        seed: Seed of what differs from one guest to the next.
        faults: What goes wrong, with each of the VMs.
        limit: How long ``main`` may take, in seconds of the simulated clock.

    Returns:
        What ``main`` returns.

    Raises:
        trio.TooSlowError: ``main`` took longer than ``limit``.
        ValueError: There is no profile of that version.
    """
    first, *others = [
        Machine(config, profile(version), Random(seed + number))
        for number, config in enumerate(configs or [MachineConfig()])
    ]

    async def inside(fake: FakeQemu) -> T:
        async with AsyncExitStack() as stack:
            fakes = [
                await stack.enter_async_context(open_fake(machine, faults))
                for machine in others
            ]
            return await main(fake, *fakes)

    return run_world(inside, first, faults, limit=limit)


def run_world(
    main: Callable[[FakeQemu], Awaitable[T]],
    machine: Machine | None = None,
    faults: FaultPlan = NO_FAULTS,
    *,
    limit: float = 3600.0,
) -> T:
    """Run a trio function against one machine, on a clock that jumps.

    :func:`simulate` makes the machine from a config. This function takes one that the
    caller has made.

    Args:
        main: The function. When it returns, the machine ends.
        machine: The machine; ``None`` for a default one.
        faults: What goes wrong.
        limit: How long ``main`` may take, in seconds of the simulated clock.

    Returns:
        What ``main`` returns.

    Raises:
        trio.TooSlowError: ``main`` took longer than ``limit``. Without this limit, a
            deadlock would never end: the clock has no next event to jump to.
    """

    async def world() -> T:
        with trio.fail_after(limit):
            async with open_fake(machine, faults) as fake:
                return await main(fake)

    # A clock of its own: every run begins at 0.
    return trio.run(world, clock=MockClock(autojump_threshold=0))
