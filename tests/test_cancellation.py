"""Every coroutine of a balloon on trio, cancelled at each checkpoint that it has.

Afterwards the monitor answers, or its block has been left and another can be opened;
no task is left; and the guest is told to have no less than it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from qmpballoon import MiB
from qmpballoon.client import open_balloon
from qmpballoon.testing.machine import GuestConfig, MachineConfig
from qmpballoon.testing.simulated import SimulatedVm, simulate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qmpballoon.balloon.device import Balloon

CONFIG: Final = MachineConfig(
    memory=512 * MiB, guest=GuestConfig(used=40 * MiB, cache=200 * MiB)
)
MOST: Final = 60  # checkpoints of one operation to be cancelled at


async def in_interval(balloon: Balloon) -> None:
    async with balloon.stats_interval(3):
        await balloon.monitor.sleep(0.01)


async def sample(balloon: Balloon) -> None:
    async with balloon.sampler() as sampler:
        await sampler.take()


async def an_event(balloon: Balloon) -> None:
    monitor: Any = balloon.monitor
    with monitor.subscribe("BALLOON_CHANGE") as events:
        await balloon.set_target(500 * MiB)
        await events.receive()


OPERATIONS: Final[dict[str, Callable[[Balloon], Awaitable[object]]]] = {
    "execute": lambda balloon: balloon.monitor.execute("query-status"),
    "sleep": lambda balloon: balloon.monitor.sleep(0.01),
    "event": an_event,
    "query": lambda balloon: balloon.query(),
    "actual": lambda balloon: balloon.actual(),
    "set_target": lambda balloon: balloon.set_target(500 * MiB),
    "stats": lambda balloon: balloon.stats(),
    "refresh_stats": lambda balloon: balloon.refresh_stats(),
    "get_stats_interval": lambda balloon: balloon.get_stats_interval(),
    "set_stats_interval": lambda balloon: balloon.set_stats_interval(0),
    "stats_interval": in_interval,
    "sampler": sample,
    "features": lambda balloon: balloon.features(),
    "is_running": lambda balloon: balloon.is_running(),
    "resize": lambda balloon: balloon.resize(480 * MiB),
    "plan_reclaim": lambda balloon: balloon.plan_reclaim(32 * MiB),
    "reclaim": lambda balloon: balloon.reclaim(32 * MiB),
}
# These leave a target behind that need not have been reached: it is what was asked.
SETS_A_TARGET: Final = {"event", "set_target"}


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when its task has been resumed so many times."""

    def __init__(self, scope: trio.CancelScope, number: int) -> None:
        self._scope = scope
        self._left = number
        self._task = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count; trio calls this whenever a task has come to a checkpoint."""
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def struck(number: int, operation: Callable[[], Awaitable[object]]) -> bool:
    """Cancel an operation at that checkpoint; tell whether it has so many."""
    with trio.CancelScope() as scope:
        instrument = CancelAt(scope, number)
        trio.lowlevel.add_instrument(instrument)
        try:
            await operation()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancel_called


@pytest.mark.parametrize("name", OPERATIONS)
def test_on_trio(name: str) -> None:
    async def main(vm: SimulatedVm, number: int) -> bool:
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            await balloon.set_stats_interval(2 if name != "set_stats_interval" else 0)
            cancelled = await struck(number, lambda: OPERATIONS[name](balloon))
            actual = await balloon.actual()
            device = vm.do(lambda machine: machine.device)
            assert device is not None
            target = 512 * MiB - device.asked * 4096
            if name not in SETS_A_TARGET:
                assert target >= actual
            expected = 0 if name == "set_stats_interval" else 2
            assert await balloon.get_stats_interval() == expected
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living <= tasks
        return cancelled

    for number in range(1, MOST):
        cancelled = simulate(lambda vm, number=number: main(vm, number), CONFIG)
        if not cancelled:
            return


def test_opening_on_trio() -> None:
    async def main(vm: SimulatedVm, number: int) -> bool:
        async def use() -> None:
            async with open_balloon(vm.connect()) as balloon:
                await balloon.query()

        tasks = trio.lowlevel.current_statistics().tasks_living
        cancelled = await struck(number, use)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living <= tasks
        async with open_balloon(vm.connect(), timeout=1) as balloon:
            await balloon.query()  # the place is free again
        return cancelled

    for number in range(1, MOST):
        cancelled = simulate(lambda vm, number=number: main(vm, number), CONFIG)
        if not cancelled:
            assert number > 10
            return
    pytest.fail("it never ended")
