"""Simulated VMs for a test on trio: in memory, and faster than time.

::

    async def night(vm: SimulatedVm) -> int:
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            return (await balloon.reclaim()).handed_over

    assert simulate(night, MachineConfig(memory=16 << 30)) > 8 << 30

The clock is trio's ``MockClock``: it jumps to whatever happens next, so a minute of
a VM's life takes a fraction of a second. The same call gives the same result every
time, under hypothesis' ``@given`` to the last detail.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING, TypeVar

from attrs import frozen

from qmpballoon.testing.faults import NO_FAULTS, FaultPlan
from qmpballoon.testing.model.machine import Machine, MachineConfig
from qmpballoon.testing.profiles import profile
from qmpballoon.testing.server import FakeQemu, open_fake
from qmpballoon.testing.world import run_world

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

__all__ = ["SimulatedVm", "simulate"]

T = TypeVar("T")


@frozen(eq=False)
class SimulatedVm:
    """A VM in a simulated world; :func:`simulate` makes it.

    Attributes:
        fake: Its QEMU.
    """

    fake: FakeQemu

    def connect(self) -> trio.abc.Stream:
        """Return a new connection to its monitor, for ``open_balloon``."""
        return self.fake.connect()

    def wall_clock(self) -> float:
        """Return the world's time in seconds since the epoch."""
        return self.fake.wall_clock()

    def do(self, action: Callable[[Machine], T]) -> T:
        """Look at the machine, or do something to it, and return what came of it.

        Args:
            action: For example ``Machine.stop``.
        """
        self.fake.touch()
        try:
            return action(self.fake.machine)
        finally:
            self.fake.touch()


def simulate(
    main: Callable[..., Awaitable[T]],
    *configs: MachineConfig,
    version: str = "10.0",
    seed: int = 0,
    faults: FaultPlan = NO_FAULTS,
    limit: float = 3600.0,
) -> T:
    """Run a trio function in a world with simulated VMs.

    Args:
        main: The function; it is called with a :class:`SimulatedVm` for each of the
            ``configs``, and the world ends when it returns.
        configs: The VMs; by default one of 2 GiB, 1 GiB of it page cache.
        version: The QEMU that they are, one of :data:`~.profiles.PROFILES`.
        seed: Of what differs from one guest to the next.
        faults: What goes wrong, with each of them.
        limit: Seconds of the world's time that it may take.

    Returns:
        What ``main`` returns.

    Raises:
        trio.TooSlowError: It hangs: it took longer than ``limit``.
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
            return await main(*map(SimulatedVm, [fake, *fakes]))

    return run_world(inside, first, faults, limit=limit)
