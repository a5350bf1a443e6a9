"""How the monitors of a fleet's VMs are opened."""

from __future__ import annotations

import os
import random
import resource
from typing import TYPE_CHECKING

import trio
import trio.testing
from worlds import become, open_world, simulated, supervised, view

from qmpballoon.address import LibvirtVm, UnixAddress
from qmpballoon.fleet.openers import raise_descriptor_limit
from qmpballoon.fleet.supervisor import open_fleet
from qmpballoon.fleet.vm_spec import VmSpec
from qmpballoon.testing import serve

if TYPE_CHECKING:
    from qmpballoon.testing import Machine


@simulated
async def test_a_vm_of_libvirts_needs_an_opener_that_knows_it() -> None:
    def source() -> list[VmSpec]:
        return [VmSpec("vm", LibvirtVm("vm"))]

    async with open_fleet(source, random.Random(0)) as fleet:
        await become(fleet, {"vm": "gone"})
        assert "is libvirt's" in view(fleet, "vm").detail


@simulated
async def test_some_descriptors_stay_free() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with open_world() as world:
        world.start("vm")
        async with supervised(world) as fleet:
            used = os.open("/", os.O_RDONLY)
            os.close(used)
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, hard))
            try:
                await become(fleet, {"vm": "gone"})
                assert "no file descriptor left" in view(fleet, "vm").detail
                raise_descriptor_limit()
                assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
                await become(fleet, {"vm": "healthy"})
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_fleet_has_monitors_of_its_own() -> None:
    """The shared ones are free for others, where QEMU can add monitors."""

    async def main() -> list[str]:
        rng = random.Random(0)
        async with open_fleet(lambda: [vm], rng) as fleet:
            assert await fleet.wait_until_known(30)
            return await trio.to_thread.run_sync(fake.do, list_clients)

    def list_clients(machine: Machine) -> list[str]:
        return [name for name, each in machine.chardevs.items() if each.is_served]

    with serve(version="11.1") as fake:
        vm = VmSpec("vm", UnixAddress(fake.socket))
        assert len(trio.run(main)) == 1
