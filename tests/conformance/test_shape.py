"""A booted guest and the simulated one take the same course through an inflation."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
from real import VERSIONS, unavailable, wanted

from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import GuestConfig, Machine, MachineConfig, lab, run_world
from qmpballoon.trio import TrioMonitor, open_monitor

if TYPE_CHECKING:
    from qmpballoon.testing import FakeQemu

MEMORY = GiB
CACHE = 512 * MiB
TARGET = 400 * MiB + 1
ROUNDED = 400 * MiB + 4096
STATS = "guest-stats"


async def sample(monitor: TrioMonitor, path: str) -> dict[str, int]:
    """Return a sample that is taken now."""
    interval = {"path": path, "property": "guest-stats-polling-interval"}
    for seconds in (0, 1):
        await monitor.execute("qom-set", {**interval, "value": seconds})
    await trio.sleep(0.2)
    answer = await monitor.execute("qom-get", {"path": path, "property": STATS})
    assert isinstance(answer, dict)
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
