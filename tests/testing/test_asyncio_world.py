"""Simulated VMs in a world of their own, on asyncio."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from qemu.qmp import QMPClient

from qmpballoon import GiB, MonitorBusy, MonitorClosed, QmpBalloonError
from qmpballoon import open_balloon as open_on_trio
from qmpballoon.asyncio import adopt_client, open_balloon
from qmpballoon.testing import (
    SECOND,
    AsyncioFakeQemu,
    FakeQemu,
    FaultPlan,
    GuestConfig,
    Machine,
    MachineConfig,
    profile,
    ramp,
    simulate,
    simulate_asyncio,
    strategies,
)

BURST = MachineConfig(
    memory=4 * GiB,
    guest=GuestConfig(workload=ramp(start=SECOND, stop=2 * SECOND, size=GiB)),
)


async def actual(vm: AsyncioFakeQemu) -> int:
    async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
        return await balloon.actual()


async def reclaim(vm: AsyncioFakeQemu) -> dict[str, object]:
    async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
        return (await balloon.reclaim()).to_json()


def test_one_vm_by_default() -> None:
    assert simulate_asyncio(actual) == 2 * GiB


def test_as_many_vms_as_there_are_configurations() -> None:
    async def main(*vms: AsyncioFakeQemu) -> list[int]:
        return await asyncio.gather(*map(actual, vms))

    configs = [MachineConfig(memory=size * GiB) for size in (1, 2, 3)]
    assert simulate_asyncio(main, *configs) == [1 * GiB, 2 * GiB, 3 * GiB]


def test_the_same_call_has_the_same_result_and_a_seed_is_a_guest() -> None:
    first, again, other = [
        simulate_asyncio(reclaim, BURST, seed=seed) for seed in (1, 1, 2)
    ]
    assert first == again != other


def test_a_guest_does_what_it_does_on_trio() -> None:
    async def reclaim_on_trio(vm: FakeQemu) -> dict[str, object]:
        async with open_on_trio(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            return (await balloon.reclaim()).to_json()

    ours, theirs = simulate_asyncio(reclaim, BURST), simulate(reclaim_on_trio, BURST)
    assert (ours["outcome"], ours["reason"]) == (theirs["outcome"], theirs["reason"])
    assert ours["handed_over"] == theirs["handed_over"]


def test_time_jumps_and_the_clocks_go_with_it() -> None:
    config = MachineConfig(epoch=1_000 * SECOND)

    async def main(vm: AsyncioFakeQemu) -> tuple[float, float, float | None]:
        await asyncio.sleep(3000)
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            stats = await balloon.refresh_stats()
        return asyncio.get_running_loop().time(), vm.wall_clock(), stats.age

    now, wall, age = simulate_asyncio(main, config)
    assert 3000 <= now < 3002
    assert wall == pytest.approx(1000 + now)
    assert age is not None
    assert 0 <= age < 2


def test_a_second_client_waits_for_the_first() -> None:
    async def main(vm: AsyncioFakeQemu) -> None:
        async with open_balloon(vm.connect()):
            with pytest.raises(MonitorBusy):
                async with open_balloon(vm.connect(), timeout=60):
                    pytest.fail("it was greeted")
        assert await actual(vm) == 2 * GiB

    simulate_asyncio(main)


def test_the_vm_tells_its_sizes_and_things_can_be_done_to_it() -> None:
    async def main(vm: AsyncioFakeQemu) -> None:
        assert (vm.actual, vm.target, vm.oom_kills) == (2 * GiB, 2 * GiB, 0)
        async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
            before = vm.available
            await balloon.set_target(GiB)
            assert (vm.actual, vm.target) == (2 * GiB, GiB)
            await asyncio.sleep(60)
            assert vm.actual == await balloon.actual() == GiB
            assert vm.available < before
            vm.do(Machine.stop)
            assert not await balloon.is_running()
            vm.do(Machine.die)
            with pytest.raises(MonitorClosed):
                await balloon.query()
        assert vm.ended.is_set()

    simulate_asyncio(main)


def test_a_vm_without_a_balloon_has_all_its_memory() -> None:
    async def main(vm: AsyncioFakeQemu) -> None:
        assert vm.actual == vm.target == 2 * GiB

    simulate_asyncio(main, MachineConfig(balloon=None))


def test_a_client_of_qemu_qmp_can_be_adopted_in_it() -> None:
    async def main(vm: AsyncioFakeQemu) -> float:
        client = QMPClient("vm1")
        await client.connect(vm.connect())
        async with adopt_client(client, wall_clock=vm.wall_clock) as balloon:
            return (await balloon.reclaim()).seconds

    assert simulate_asyncio(main) > 1


def test_things_go_wrong_as_planned() -> None:
    async def main(vm: AsyncioFakeQemu) -> list[float]:
        with pytest.raises(MonitorClosed):
            await reclaim(vm)
        return [asyncio.get_running_loop().time(), vm.wall_clock()]

    now, wall = simulate_asyncio(main, faults=FaultPlan(kill_at=2 * SECOND))
    assert 2 <= now < 2.2  # it may be pausing between two samples
    assert wall == pytest.approx(now + MachineConfig().epoch / SECOND)
    cut = FaultPlan(
        chunk=3, cut_after=30_000, freeze_at=3 * SECOND // 2, freeze_for=5 * SECOND
    )
    now, _ = simulate_asyncio(main, faults=cut)
    assert now > 6.5
    late = FaultPlan(chunk=7, reply_delay=SECOND // 50, event_copies=2)
    assert simulate_asyncio(reclaim, faults=late)["outcome"] == "done"


@settings(max_examples=10)  # each may go on for hours of its time
@given(faults=strategies.fault_plans(), config=strategies.hostile_machines(GiB))
def test_no_fault_hangs_it(faults: FaultPlan, config: MachineConfig) -> None:
    async def main(vm: AsyncioFakeQemu) -> None:
        with suppress(QmpBalloonError):
            await reclaim(vm)

    simulate_asyncio(main, config, faults=faults)


def test_what_goes_wrong_in_a_world_is_raised_as_it_is() -> None:
    async def main(*vms: AsyncioFakeQemu) -> None:
        async with open_balloon(vms[-1].connect()) as balloon:
            await balloon.set_target(0)

    for vms in (1, 3):
        with pytest.raises(ValueError, match="at least 1"):
            simulate_asyncio(main, *[MachineConfig()] * vms)


def test_no_world_hangs() -> None:
    async def main(_: AsyncioFakeQemu) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        simulate_asyncio(main, limit=60)


def test_it_does_without_trio() -> None:
    program = (
        "import sys\n"
        "from qmpballoon.testing import asyncio_world\n"
        "assert 'trio' not in sys.modules, 'trio'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_monitor_is_added_on_a_descriptor_and_vanishes_with_its_client() -> None:
    backend = {
        "type": "socket",
        "data": {"addr": {"type": "fd", "data": {"str": "own"}}, "server": False},
    }
    properties = {"qom-type": "monitor-qmp", "close-action": "delete"}
    requests: list[dict[str, Any]] = [
        {"execute": "qmp_capabilities"},
        {"execute": "getfd", "arguments": {"fdname": "own"}},
        {"execute": "chardev-add", "arguments": {"id": "own", "backend": backend}},
        {"execute": "object-add", "arguments": {**properties, "id": "own"}},
    ]
    requests[-1]["arguments"]["chardev"] = "own"

    async def main(vm: AsyncioFakeQemu) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        with vm.connect() as shared:
            with theirs:
                data = "".join(map(json.dumps, requests)).encode()
                socket.send_fds(shared, [data], [theirs.fileno()])
            with ours:
                assert await read_line(ours) == {"QMP": profile("11.1").greeting}
                assert len(vm.machine.monitors) == 2
            await asyncio.sleep(1)
            assert len(vm.machine.monitors) == len(vm.machine.chardevs) == 1

    simulate_asyncio(main, version="11.1")


def test_added_monitors_end_with_qemu() -> None:
    ours, theirs = socket.socketpair()

    async def main(vm: AsyncioFakeQemu) -> None:
        getfd = b'{"execute": "getfd", "arguments": {"fdname": "own"}}'
        with vm.connect() as shared, theirs:
            data = b'{"execute": "qmp_capabilities"}' + getfd
            socket.send_fds(shared, [data], [theirs.fileno()])
            await asyncio.sleep(1)
            vm.do(Machine.die)

    simulate_asyncio(main, version="11.1")
    with ours:
        ours.settimeout(10)
        assert ours.recv(1) == b""


async def read_line(sock: socket.socket) -> object:
    """Return the next message from a socket."""
    data = b""
    while not data.endswith(b"\n"):
        data += await asyncio.get_running_loop().sock_recv(sock, 1)
    return json.loads(data)
