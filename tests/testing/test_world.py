"""Simulated VMs in a world of their own."""

from __future__ import annotations

import pytest
import trio

from qmpballoon import GiB, MonitorClosed, open_balloon
from qmpballoon.testing import (
    SECOND,
    FakeQemu,
    FaultPlan,
    Machine,
    MachineConfig,
    open_fake,
    simulate,
)


async def actual(vm: FakeQemu) -> int:
    async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
        return await balloon.actual()


def test_one_vm_by_default() -> None:
    assert simulate(actual) == 2 * GiB


def test_as_many_vms_as_there_are_configurations() -> None:
    async def main(*vms: FakeQemu) -> list[int]:
        return [await actual(vm) for vm in vms]

    configs = [MachineConfig(memory=size * GiB) for size in (1, 2, 3)]
    assert simulate(main, *configs) == [1 * GiB, 2 * GiB, 3 * GiB]


def test_a_seed_is_a_guest() -> None:
    async def shrink(vm: FakeQemu) -> int:
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            await balloon.set_target(1 * GiB)
            await trio.sleep(0.5)
            return await balloon.actual()

    first, again, other = [simulate(shrink, seed=seed) for seed in (1, 1, 2)]
    assert first == again != other


def test_the_wall_clock_is_the_worlds() -> None:
    config = MachineConfig(epoch=1_000 * SECOND)

    async def main(vm: FakeQemu) -> tuple[float, float | None]:
        await trio.sleep(50)
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            stats = await balloon.refresh_stats()
        assert stats.last_update is not None
        return stats.last_update.timestamp(), stats.age

    answered, age = simulate(main, config)
    assert answered == 1050
    assert age is not None
    assert 0 <= age < 2


def test_the_wall_clock_goes_on_while_qemu_is_frozen_and_when_it_is_gone() -> None:
    config = MachineConfig(epoch=1_000 * SECOND)
    plan = FaultPlan(freeze_at=10 * SECOND, freeze_for=20 * SECOND, kill_at=40 * SECOND)

    async def main(vm: FakeQemu) -> list[float]:
        times = []
        for at in (5, 15, 35, 65):
            await trio.sleep_until(at)
            times.append(vm.wall_clock())
        return times

    assert simulate(main, config, faults=plan) == [1005, 1015, 1035, 1065]


def test_a_guests_answer_after_a_freeze_is_of_now() -> None:
    plan = FaultPlan(freeze_at=10 * SECOND, freeze_for=20 * SECOND)

    async def main(vm: FakeQemu) -> float | None:
        await trio.sleep(50)
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            return (await balloon.refresh_stats()).age

    age = simulate(main, faults=plan)
    assert age is not None
    assert 0 <= age < 2


def test_what_goes_wrong_in_a_world_is_raised_as_it_is() -> None:
    async def main(*vms: FakeQemu) -> None:
        async with open_balloon(vms[-1].connect()) as balloon:
            await balloon.set_target(0)

    for vms in (1, 2, 3):
        with pytest.raises(ValueError, match="at least 1"):
            simulate(main, *[MachineConfig()] * vms)


def test_a_world_that_is_cancelled_is_left() -> None:
    async def main(vm: FakeQemu) -> str:
        with trio.move_on_after(5):
            async with open_fake():
                await trio.sleep_forever()
        assert trio.current_time() == 5
        return str(await actual(vm))

    assert simulate(main) == str(2 * GiB)


def test_something_can_be_done_to_a_vm() -> None:
    async def main(vm: FakeQemu) -> bool:
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            vm.do(Machine.stop)
            return await balloon.is_running()

    assert simulate(main) is False


def test_things_go_wrong_as_planned() -> None:
    async def main(vm: FakeQemu) -> None:
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            with pytest.raises(MonitorClosed):
                await balloon.reclaim()

    simulate(main, faults=FaultPlan(kill_at=2 * SECOND))


def test_no_world_hangs() -> None:
    async def main(_: FakeQemu) -> None:
        await trio.sleep_forever()

    with pytest.raises(trio.TooSlowError):
        simulate(main, limit=60)


def test_no_such_version() -> None:
    with pytest.raises(ValueError, match=r"0\.9"):
        simulate(actual, version="0.9")
