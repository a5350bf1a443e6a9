"""Simulated VMs in a world of their own."""

from __future__ import annotations

import pytest
import trio

from qmpballoon import GiB, MonitorClosed, open_balloon
from qmpballoon.testing.faults import FaultPlan
from qmpballoon.testing.machine import SECOND, Machine, MachineConfig
from qmpballoon.testing.simulated import SimulatedVm, simulate


async def actual(vm: SimulatedVm) -> int:
    async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
        return await balloon.actual()


def test_one_vm_by_default() -> None:
    assert simulate(actual) == 2 * GiB


def test_as_many_vms_as_there_are_configurations() -> None:
    async def main(*vms: SimulatedVm) -> list[int]:
        return [await actual(vm) for vm in vms]

    configs = [MachineConfig(memory=size * GiB) for size in (1, 2, 3)]
    assert simulate(main, *configs) == [1 * GiB, 2 * GiB, 3 * GiB]


def test_a_seed_is_a_guest() -> None:
    async def shrink(vm: SimulatedVm) -> int:
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            await balloon.set_target(1 * GiB)
            await trio.sleep(0.5)
            return await balloon.actual()

    first, again, other = [simulate(shrink, seed=seed) for seed in (1, 1, 2)]
    assert first == again != other


def test_the_wall_clock_is_the_worlds() -> None:
    config = MachineConfig(epoch=1_000 * SECOND)

    async def main(vm: SimulatedVm) -> tuple[float, float | None]:
        await trio.sleep(50)
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            stats = await balloon.refresh_stats()
        assert stats.last_update is not None
        return stats.last_update.timestamp(), stats.age

    answered, age = simulate(main, config)
    assert answered == 1050
    assert age is not None
    assert 0 <= age < 2


def test_something_can_be_done_to_a_vm() -> None:
    async def main(vm: SimulatedVm) -> bool:
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            vm.do(Machine.stop)
            return await balloon.is_running()

    assert simulate(main) is False


def test_things_go_wrong_as_planned() -> None:
    async def main(vm: SimulatedVm) -> None:
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            with pytest.raises(MonitorClosed):
                await balloon.reclaim()

    simulate(main, faults=FaultPlan(kill_at=2 * SECOND))


def test_no_world_hangs() -> None:
    async def main(_: SimulatedVm) -> None:
        await trio.sleep_forever()

    with pytest.raises(trio.TooSlowError):
        simulate(main, limit=60)


def test_no_such_version() -> None:
    with pytest.raises(ValueError, match=r"0\.9"):
        simulate(actual, version="0.9")
