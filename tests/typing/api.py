"""What type checkers make of the API, from a user's code.

Nothing here is run: mypy and pyright read it (the environment ``types``). A line that
must *not* pass is marked as ignored, and for mypy an ignore too many is an error.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal, assert_type

import qmpballoon
from qmpballoon import (
    Balloon,
    BalloonInfo,
    BalloonStalled,
    Diagnosis,
    Event,
    GiB,
    Guard,
    GuestStats,
    Monitor,
    MonitorError,
    Plan,
    Progress,
    ReclaimReport,
    ResizeResult,
    Sample,
    Snapshot,
    Timeline,
    TrioMonitor,
    VmInfo,
    blocking,
    find_balloon,
    format_size,
    libvirt,
    open_balloon,
    open_monitor,
    parse_size,
)
from qmpballoon import asyncio as aio
from qmpballoon import trio as trio_door
from qmpballoon.testing import FakeQemu, MachineConfig, ThreadedFake, serve, simulate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qemu.qmp import QMPClient


def values() -> None:
    assert_type(parse_size("2G"), int)
    assert_type(format_size(2 * GiB), str)
    assert_type(qmpballoon.__version__, str)
    assert_type(Guard(headroom=GiB).headroom, int | None)
    parse_size(2)  # type: ignore[arg-type]
    Guard(hedroom=GiB)  # type: ignore[call-arg]


async def on_trio() -> None:
    async with open_balloon("/run/vm1.qmp", timeout=1) as balloon:
        assert_type(balloon, Balloon[TrioMonitor])
        await asking(balloon)
        await moving(balloon)
        await balloon.monitor.execute("query-status", timeout=1, oob=True)
        with balloon.monitor.subscribe("BALLOON_CHANGE") as events:
            assert_type(await events.receive(), Event)
    async with open_balloon("/run/vm1.qmp", own="auto") as balloon:
        assert_type(balloon, Balloon[TrioMonitor])
    open_balloon("/run/vm1.qmp", own="yes")  # type: ignore[arg-type]
    async with open_monitor(("localhost", 4444)) as monitor:
        assert_type(monitor, TrioMonitor)
        assert_type(await find_balloon(monitor), Balloon[TrioMonitor])
        with monitor.subscribe("BALLOON_CHANGE") as events:
            async for event in events:
                assert_type(event, Event)


async def staying_connected() -> None:
    async for connection in trio_door.stay_connected(
        lambda: open_balloon("/run/vm1.qmp"), random.Random()
    ):
        async with connection as balloon:
            assert_type(balloon, Balloon[TrioMonitor])
    async for other in aio.stay_connected(
        lambda: aio.open_monitor("/run/vm1.qmp"), random.Random(), first_pause=1
    ):
        async with other as monitor:
            assert_type(monitor, aio.AsyncioMonitor)
    for one in blocking.stay_connected(
        lambda: blocking.open_monitor("/run/vm1.qmp"), random.Random()
    ):
        with one as plain:
            assert_type(plain, blocking.BlockingMonitor)


async def asking(balloon: Balloon) -> None:
    assert_type(await balloon.query(), BalloonInfo)
    assert_type((await balloon.query()).total, int | None)
    assert_type(await balloon.query_vm(), VmInfo)
    assert_type(await balloon.refresh_stats(timeout=2), GuestStats)
    assert_type((await balloon.stats()).available, int | None)
    assert_type(balloon.resident(), int | None)
    assert_type(await balloon.features(), dict[str, bool])
    async with balloon.stats_interval(1), balloon.sampler() as sampler:
        assert_type(await sampler.take(), Sample)


async def moving(balloon: Balloon) -> None:
    def show(progress: Progress) -> None:
        assert_type(progress.time_left, float | None)

    try:
        result = await balloon.resize(GiB, on_stall="settle", on_progress=show)
    except BalloonStalled as stalled:
        assert_type(stalled.diagnosis, Diagnosis | None)
        assert_type(stalled.result, ResizeResult)
    except MonitorError as error:
        assert_type(error.unknown_outcome, tuple[str, ...])
    else:
        assert_type(
            result.outcome,
            Literal["reached", "stalled", "settled", "rolled-back", "timed-out"],
        )
    assert_type(await balloon.plan_reclaim(GiB, guard=Guard()), Plan)
    report = await balloon.reclaim(hold=True)
    assert_type(report, ReclaimReport)
    assert_type(report.before, Snapshot)
    assert_type(report.timeline, Timeline)
    assert_type([sample.actual for sample in report.timeline], list[int])
    async for sample in balloon.watch(1):
        assert_type(sample, Sample)
    await balloon.resize(GiB, guard=Guard(headroom=GiB), unguarded=False)
    await balloon.resize("2G")  # type: ignore[arg-type]
    await balloon.resize(GiB, on_stall="hope")  # type: ignore[arg-type]


async def on_asyncio(client: QMPClient) -> None:
    held = await aio.find_balloon(client, command_timeout=1)
    assert_type(held, Balloon[aio.HeldClientMonitor])
    await held.monitor.execute("query-status", timeout=1)
    with (
        aio.limit_unread_events(client),
        held.monitor.subscribe("BALLOON_CHANGE") as heard,
    ):
        assert_type(await heard.receive(), Event)
    async with aio.open_balloon("/run/vm1.qmp") as balloon:
        assert_type(balloon, Balloon[aio.AsyncioMonitor])
        await asking(balloon)
        await moving(balloon)
        assert_type(
            await aio.find_balloon(balloon.monitor), Balloon[aio.AsyncioMonitor]
        )
        await balloon.monitor.execute("query-status", timeout=1, oob=True)
        with balloon.monitor.subscribe("BALLOON_CHANGE") as events:
            assert_type(await events.receive(), Event)
    async with aio.open_monitor("/run/vm1.qmp") as monitor:
        assert_type(await monitor.execute("query-status"), object)


def without_a_loop() -> None:
    with blocking.open_balloon("/run/vm1.qmp") as balloon:
        assert_type(balloon, blocking.BlockingBalloon[blocking.BlockingMonitor])
        balloon.monitor.execute("query-status", timeout=1)
        with balloon.monitor.subscribe("BALLOON_CHANGE") as events:
            assert_type(events.receive(timeout=1), Event | None)
        assert_type(balloon.query(), BalloonInfo)
        assert_type(balloon.query_vm(), VmInfo)
        assert_type(balloon.resize(GiB, timeout=5), ResizeResult)
        assert_type(balloon.reclaim(guard=Guard()), ReclaimReport)
        with balloon.sampler() as sampler:
            assert_type(sampler.take(), Sample)
        for sample in balloon.watch(1):
            assert_type(sample, Sample)
        balloon.resize("2G")  # type: ignore[arg-type]


async def through_libvirt(domain: libvirt.Domain) -> None:
    found = await libvirt.find_balloon_trio(domain)
    assert_type(found, Balloon[libvirt.TrioLibvirtMonitor])
    await asking(found)
    assert_type(
        await libvirt.find_balloon_asyncio(domain),
        Balloon[libvirt.AsyncioLibvirtMonitor],
    )
    assert_type(
        libvirt.find_balloon(domain), blocking.BlockingBalloon[libvirt.LibvirtMonitor]
    )
    async with libvirt.open_balloon_trio(domain) as own:
        assert_type(own, Balloon[TrioMonitor])
    async with libvirt.open_balloon_asyncio(domain) as own_on_asyncio:
        assert_type(own_on_asyncio, Balloon[aio.AsyncioMonitor])
    with libvirt.open_balloon(domain) as blocked:
        assert_type(blocked, blocking.BlockingBalloon[blocking.BlockingMonitor])


class Own:
    """A monitor of one's own needs no base class."""

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        return {command: arguments}

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float:
        return 0.0

    def shield(self, seconds: float) -> ThreadedFake:
        raise NotImplementedError


def monitors(trio: TrioMonitor, asyncio: aio.AsyncioMonitor, own: Own) -> None:
    first: Monitor = trio
    second: Monitor = asyncio
    third: Monitor = own  # type: ignore[assignment]
    del first, second, third


async def in_a_world(vm: FakeQemu) -> int:
    async with open_balloon(vm.connect(), wall_clock=vm.wall_clock) as balloon:
        return await balloon.actual()


def tests() -> None:
    assert_type(simulate(in_a_world, MachineConfig(), seed=1), int)
    with serve(version="7.2") as fake:
        assert_type(fake, ThreadedFake)
        assert_type(fake.do(lambda machine: machine.resident), int)
