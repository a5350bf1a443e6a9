"""A client and a simulated QEMU in a world of their own, on a clock of their own.

A world runs as fast as Python does: its clock jumps to the next thing that happens.
It depends on nothing but what it is made of; under hypothesis' ``@given``, on which
trio schedules deterministically, the same example is the same run. To look for bugs
in the order of tasks, draw ``hypothesis.strategies.random_module()`` too.

::

    async def main(fake: FakeQemu) -> int:
        async with open_monitor(fake.connect()) as monitor:
            ...

    assert run_world(main, Machine(config), FaultPlan(chunk=1)) == ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio
from trio.testing import MockClock

from qmpballoon.testing.faults import NO_FAULTS, FaultPlan
from qmpballoon.testing.server import FakeQemu, open_fake

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qmpballoon.testing.model.machine import Machine

__all__ = ["run_world"]

_T = TypeVar("_T")


def run_world(
    main: Callable[[FakeQemu], Awaitable[_T]],
    machine: Machine | None = None,
    faults: FaultPlan = NO_FAULTS,
    *,
    limit: float = 3600.0,
) -> _T:
    """Run ``main`` against a simulated machine, on a clock that jumps.

    Args:
        main: The client; the world ends when it returns.
        machine: Which; a default one, if none is given.
        faults: What goes wrong.
        limit: Seconds on the world's clock that it may take.

    Returns:
        What ``main`` returns.

    Raises:
        trio.TooSlowError: It took longer than ``limit``: it hangs. Without a watchdog
            a world in which nothing can happen any more would wait for ever.
    """

    async def world() -> _T:
        with trio.fail_after(limit):
            async with open_fake(machine, faults) as fake:
                return await main(fake)

    # The clock is made in here: each world begins at its own zero.
    return trio.run(world, clock=MockClock(autojump_threshold=0))
