"""A booted guest and the simulated one take the same course through an inflation."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import trio
from real import VERSIONS, unavailable, wanted

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import (
    FileReads,
    GuestConfig,
    Machine,
    MachineConfig,
    lab,
    run_world,
)
from qmpballoon.trio import TrioMonitor, find_balloon, open_monitor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qmpballoon.testing import FakeQemu

PAGE = 4096
MEMORY = GiB
CACHE = 512 * MiB
TARGET = 400 * MiB + 1
ROUNDED = 400 * MiB + PAGE
STATS = "guest-stats"


async def last_sample(monitor: TrioMonitor, path: str) -> dict[str, Any]:
    answer = await monitor.execute("qom-get", {"path": path, "property": STATS})
    assert isinstance(answer, dict)
    return answer


async def sample(monitor: TrioMonitor, path: str) -> dict[str, int]:
    """Return a sample that is taken now, however long the guest takes.

    The one that is there may be of when the driver was loaded: a guest that was saved
    has it in its queue, and QEMU reads it when the guest goes on.
    """
    interval = {"path": path, "property": "guest-stats-polling-interval"}
    await monitor.execute("qom-set", {**interval, "value": 0})
    old = answer = await last_sample(monitor, path)
    await monitor.execute("qom-set", {**interval, "value": 1})
    while answer["last-update"] == old["last-update"]:
        await trio.sleep(0.05)
        answer = await last_sample(monitor, path)
    stats: dict[str, int] = answer["stats"]
    return {name.removeprefix("stat-"): value for name, value in stats.items()}


async def actual(monitor: TrioMonitor) -> int:
    answer = await monitor.execute("query-balloon")
    assert isinstance(answer, dict)
    size: int = answer["actual"]
    return size


async def hold_the_shape(monitor: TrioMonitor, path: str) -> None:
    """Inflate, and hold what any QEMU with a Linux guest does on the way."""
    before = await sample(monitor, path)
    seen = [await actual(monitor)]
    await monitor.execute("balloon", {"value": TARGET})
    while seen[-1] != ROUNDED:
        await trio.sleep(0.05)
        seen.append(await actual(monitor))
    after = await sample(monitor, path)

    assert seen[0] == MEMORY
    assert all(later <= earlier for earlier, later in pairwise(seen))
    shrunk = before["total-memory"] - after["total-memory"]
    assert shrunk == MEMORY - ROUNDED
    assert before["disk-caches"] >= CACHE
    assert after["disk-caches"] < before["disk-caches"] - CACHE // 4
    for stats in (before, after):
        reserve = MEMORY - (0 if stats is before else shrunk) - stats["total-memory"]
        assert 0 < reserve < MEMORY // 8
        assert stats["free-memory"] + stats["disk-caches"] < stats["total-memory"]
        assert stats["available-memory"] < stats["total-memory"]
    assert before["available-memory"] > before["free-memory"]


def test_the_simulated_guest() -> None:
    guest = GuestConfig(cache=CACHE)
    machine = Machine(MachineConfig(memory=MEMORY, guest=guest))

    async def main(fake: FakeQemu) -> None:
        async with open_monitor(fake.connect()) as monitor:
            await hold_the_shape(monitor, "balloon0")

    run_world(main, machine)


@pytest.mark.qemu
@pytest.mark.conformance
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_real_guest(version: str) -> None:
    try:
        async with (
            lab.boot(
                memory=MEMORY, cache=CACHE, qemu=wanted(version), saved=True
            ) as guest,
            open_monitor(guest.socket) as monitor,
        ):
            await hold_the_shape(monitor, await balloon_path(monitor))
    except lab.LabError as error:
        unavailable(version, error)


async def balloon_path(monitor: TrioMonitor) -> str:
    """Return the path of the lab's balloon."""
    answer = await monitor.execute("x-query-virtio")
    assert isinstance(answer, list)
    (path,) = (d["path"] for d in answer if d["name"] == "virtio-balloon")
    return str(path).removesuffix("/virtio-backend")


# What is read again

LOOP = 128 * MiB
STEP = 12 * MiB


async def find_edge(
    monitor: TrioMonitor, a_round: Callable[[], Awaitable[None]]
) -> int:
    """Take cache from a guest until it reads what it had there; return the cache.

    Args:
        monitor: The guest's.
        a_round: Returns when all of the loop has been read once more.
    """
    balloon = await find_balloon(monitor)
    stats = await balloon.refresh_stats()
    size = await balloon.actual() - (stats.reclaimable or 0) + LOOP + 6 * STEP
    async with balloon.sampler() as sampler:
        quiet = 0
        for _ in range(20):
            await balloon.set_target(size)
            while await balloon.actual() > size + PAGE:  # noqa: ASYNC110
                await trio.sleep(0.05)
            await a_round()
            before = await sampler.take()
            await a_round()
            after = await sampler.take()
            assert before.disk_reads is not None
            assert after.disk_reads is not None
            if after.disk_reads > before.disk_reads + STEP:
                return quiet
            quiet = after.disk_caches or 0
            size -= STEP
    raise AssertionError("it never read again")


def check_edge(cache: int) -> None:
    """Hold the edge to be where the loop, and what cannot be dropped, just fit."""
    assert LOOP <= cache <= LOOP * 11 // 10 + 2 * STEP


def test_the_edge_of_a_simulated_loop() -> None:
    files = (FileReads("loop", LOOP, rate=256 * MiB),)
    guest = GuestConfig(used=60 * MiB, cache=320 * MiB, pinned=MiB, files=files)
    machine = Machine(MachineConfig(memory=512 * MiB, disks=1, guest=guest))

    async def main(fake: FakeQemu) -> None:
        async with open_monitor(fake.connect()) as monitor:
            check_edge(await find_edge(monitor, partial(trio.sleep, 0.7)))

    run_world(main, machine)


async def a_round(guest: lab.Guest) -> None:
    """Wait until the loop has been read twice: the first may have begun before."""
    begun = await rounds(guest)
    while await rounds(guest) < begun + 2:  # noqa: ASYNC110 - nobody tells
        await trio.sleep(0.1)


async def rounds(guest: lab.Guest) -> int:
    return int(await guest.run("wc -l <rounds"))


@pytest.mark.qemu
@pytest.mark.conformance
@pytest.mark.parametrize(("version", "kernel"), [("7.2", None), ("11.1", "6.12")])
async def test_the_edge_of_a_real_loop(version: str, kernel: str | None) -> None:
    read = f"dd if=/dev/vda of=/dev/null bs=1M count={LOOP // MiB} 2>/dev/null"
    loop = f"while {read}; do echo >>rounds; sleep 0.1; done"
    try:
        async with (
            lab.boot(
                memory=512 * MiB,
                cache=320 * MiB,
                qemu=wanted(version),
                kernel=kernel,
                saved=True,
            ) as guest,
            open_monitor(guest.socket) as monitor,
        ):
            await guest.run(f": >rounds; ({loop}) </dev/null >/dev/null 2>&1 &")
            check_edge(await find_edge(monitor, partial(a_round, guest)))
    except lab.LabError as error:
        unavailable(version, error)
