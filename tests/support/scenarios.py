"""What is to hold on every front end, against the fake and against a real QEMU.

Each scenario is given a front end and the path of a monitor. Behind that is a guest
of :data:`MEMORY` with a driver and some :data:`CACHE`, awake and at its full size,
and so it is left.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import pytest

from qmpballoon import (
    BalloonBusy,
    BalloonStalled,
    CommandError,
    CommandNotFound,
    DeviceNotFound,
    Guard,
    MiB,
    MonitorBusy,
    StallLimits,
    UnsafeTarget,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from frontends import FrontEnd

    from qmpballoon import Balloon, Progress, Sample

MEMORY = 512 * MiB
CACHE = 128 * MiB
QUICK = StallLimits(window=0.5)


async def wait_for(balloon: Balloon, actual: int) -> None:
    """Wait until the guest has come to a size."""
    deadline = balloon.monitor.now() + 30
    while await balloon.actual() != actual:
        assert balloon.monitor.now() < deadline
        await balloon.monitor.sleep(0.02)


async def asking_and_setting(front: FrontEnd, path: str) -> None:
    async with front.open_balloon(path) as balloon:
        info = await balloon.query()
        assert (info.actual, info.total, info.target) == (MEMORY, MEMORY, None)
        assert (info.ballooned, await balloon.actual()) == (0, MEMORY)
        await balloon.set_target(400 * MiB + 1)
        assert balloon.target == 400 * MiB + 4096
        assert (await balloon.query()).target == 400 * MiB + 4096
        await wait_for(balloon, 400 * MiB + 4096)
        await balloon.set_target(MEMORY)
        await wait_for(balloon, MEMORY)
        assert balloon.path.startswith("/machine/peripheral")
        assert balloon.device_type == "virtio-balloon-pci"
        assert (await balloon.features())["deflate-on-oom"] is False
        assert await balloon.is_running()


async def statistics(front: FrontEnd, path: str) -> None:
    async with front.open_balloon(path) as balloon:
        assert await balloon.get_stats_interval() == 0
        fresh = await balloon.refresh_stats()
        assert fresh.age is not None
        assert 0 <= fresh.age < 5
        assert (fresh.disk_caches or 0) > CACHE * 0.9
        assert MEMORY * 0.7 < (fresh.total or 0) <= MEMORY
        again = await balloon.stats()
        assert again.total == fresh.total
        async with balloon.stats_interval(7):
            assert await balloon.get_stats_interval() == 7
        assert await balloon.get_stats_interval() == 0
        with pytest.raises(ZeroDivisionError):
            async with balloon.stats_interval(7):
                raise ZeroDivisionError
        await balloon.set_stats_interval(5)
        async with balloon.sampler() as sampler:
            await balloon.monitor.sleep(0.1)
            sample = await sampler.take("here")
            assert (sample.actual, sample.mark) == (MEMORY, "here")
            assert sample.disk_caches == sampler.stats.disk_caches
            assert sampler.basis == MEMORY
            assert sampler.start <= balloon.monitor.now()
            assert sampler.silence <= balloon.monitor.now() - sampler.start
        assert await balloon.get_stats_interval() == 5
        await balloon.set_stats_interval(0)


async def resizing(front: FrontEnd, path: str) -> None:
    async with front.open_balloon(path) as balloon:
        seen: list[Progress] = []
        result = await balloon.resize(300 * MiB, on_progress=seen.append)
        assert result.outcome == "reached"
        assert (result.before, result.actual) == (MEMORY, 300 * MiB)
        assert result.diagnosis is None
        assert seen[-1].phase == "reached"
        assert {each.stage for each in seen} == {"inflating"}
        assert await balloon.actual() == 300 * MiB
        result = await balloon.resize(2 * MEMORY)
        assert (result.outcome, result.actual) == ("reached", MEMORY)


async def resizing_a_paused_vm(front: FrontEnd, path: str) -> None:
    async with front.open_balloon(path) as balloon:
        await balloon.monitor.execute("stop")
        assert not await balloon.is_running()
        with pytest.raises(BalloonStalled, match="the VM is paused") as caught:
            await balloon.resize(300 * MiB, limits=QUICK)
        assert caught.value.diagnosis is not None
        assert caught.value.diagnosis.kind == "paused"
        assert caught.value.result.outcome == "stalled"
        settled = await balloon.resize(300 * MiB, on_stall="settle", limits=QUICK)
        assert (settled.outcome, settled.target) == ("settled", MEMORY)
        back = await balloon.resize(300 * MiB, on_stall="rollback", limits=QUICK)
        assert (back.outcome, back.actual) == ("rolled-back", MEMORY)
        late = await balloon.resize(300 * MiB, on_stall="settle", timeout=0.2)
        assert (late.outcome, late.target) == ("timed-out", MEMORY)
        await balloon.monitor.execute("cont")
        assert await balloon.actual() == MEMORY


async def reclaiming(front: FrontEnd, path: str) -> None:
    guard = Guard(headroom=48 * MiB)
    async with front.open_balloon(path) as balloon:
        plan = await balloon.plan_reclaim(100 * MiB, guard=guard)
        assert plan.amount == 100 * MiB
        samples: list[Progress] = []
        report = await balloon.reclaim(
            100 * MiB, guard=guard, hold=True, on_progress=samples.append
        )
        assert (report.outcome, report.held) == ("done", True)
        assert report.handed_over >= 99 * MiB
        assert len(samples) == len(report.timeline) > 1
        assert await balloon.actual() == MEMORY - report.handed_over
        report = await balloon.reclaim(50 * MiB, guard=guard)
        assert (report.outcome, report.held) == ("done", False)
        assert report.after.actual == report.before.actual
        result = await balloon.resize(MEMORY)
        assert result.outcome == "reached"


async def keeping(front: FrontEnd, path: str) -> None:
    guard = Guard(headroom=96 * MiB)
    async with front.open_balloon(path) as balloon:
        samples: list[Progress] = []
        report = await balloon.keep(
            100 * MiB, guard=guard, seconds=0.3, on_progress=samples.append
        )
        assert (report.outcome, report.held) == ("done", False)
        assert "as long as it was to be" in report.reason
        assert [s.sample.mark for s in samples if s.sample.mark] == [
            "kept",
            "given-back",
        ]
        assert report.after.actual == MEMORY == await balloon.actual()
        with pytest.raises(ValueError, match="seconds"):
            await balloon.keep(seconds=-1)


async def interrupting_a_reclaim(front: FrontEnd, path: str) -> None:
    async with front.open_balloon(path) as balloon:
        await balloon.set_stats_interval(3)
        with front.interrupted() as strike:
            await balloon.reclaim(
                hold=True, on_progress=lambda s: strike() if s.actual < MEMORY else None
            )
            pytest.fail("it went on")
        assert balloon.target == MEMORY
        assert await balloon.get_stats_interval() == 3
        await balloon.set_stats_interval(0)
        await wait_for(balloon, MEMORY)


async def stopping_from_on_progress(front: FrontEnd, path: str) -> None:
    class Stopped(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == "keeping":
            raise Stopped

    async with front.open_balloon(path) as balloon:
        with pytest.raises(Stopped):
            await balloon.keep(
                100 * MiB, guard=Guard(headroom=96 * MiB), on_progress=stop
            )
        assert balloon.target == MEMORY
        assert await balloon.get_stats_interval() == 0
        await wait_for(balloon, MEMORY)


async def watching(front: FrontEnd, path: str) -> None:
    async with front.open_balloon(path) as balloon:
        await balloon.set_stats_interval(5)
        samples: list[Sample] = []
        # Left early, and not closed.
        async for sample in balloon.watch(0.1):
            assert await balloon.get_stats_interval() == 5
            samples.append(sample)
            if len(samples) == 3:
                break
        assert await balloon.get_stats_interval() == 5
        await balloon.set_stats_interval(0)
        assert [sample.t for sample in samples] == sorted(s.t for s in samples)
        assert samples[-1].t >= 0.2
        assert {sample.actual for sample in samples} == {MEMORY}
        assert (samples[-1].disk_caches or 0) > CACHE * 0.9


async def moving_it_twice_at_once(front: FrontEnd, path: str) -> None:
    async with front.open_balloon(path) as balloon:
        refused: list[str] = []

        def interfere(_: object) -> None:
            calls = [
                balloon.set_target(300 * MiB),
                balloon.resize(300 * MiB),
                balloon.reclaim(),
                balloon.keep(),
            ]
            for call in calls:
                with pytest.raises(BalloonBusy, match="nothing was sent") as caught:
                    call.send(None)
                refused.append(str(caught.value))
                call.close()

        await balloon.resize(500 * MiB, on_progress=interfere)
        assert refused
        assert all("resize moves this balloon now" in line for line in refused)
        await balloon.reclaim(8 * MiB, on_progress=interfere)
        assert "reclaim moves this balloon now" in refused[-1]
        await balloon.resize(MEMORY)
        await balloon.set_target(MEMORY)


async def refusals(front: FrontEnd, path: str) -> None:
    async with front.open_balloon(path) as balloon:
        execute = balloon.monitor.execute
        with pytest.raises(CommandNotFound, match="nope") as unknown:
            await execute("nope")
        assert (unknown.value.command, unknown.value.error_class) == (
            "nope",
            "CommandNotFound",
        )
        with pytest.raises(DeviceNotFound):
            await execute("qom-list", {"path": "/nope"})
        with pytest.raises(CommandError, match="expects a size"):
            await execute("balloon", {"value": -1})
        with pytest.raises(UnsafeTarget, match="nothing was sent"):
            await balloon.resize(MiB)
        assert balloon.target is None


async def bad_arguments(front: FrontEnd, path: str) -> None:
    async with front.open_balloon(path) as balloon:
        loop: list[object] = []
        loop.append(loop)
        bad: list[tuple[Callable[[], Awaitable[object]], type[Exception]]] = [
            (lambda: balloon.set_target(cast("Any", "1G")), TypeError),
            (lambda: balloon.set_target(cast("Any", 1e9)), TypeError),
            (lambda: balloon.set_target(0), ValueError),
            (lambda: balloon.set_target(2**63), ValueError),
            (lambda: balloon.set_stats_interval(-1), ValueError),
            (lambda: balloon.refresh_stats(timeout=math.nan), ValueError),
            (lambda: balloon.resize(300 * MiB, timeout=-1), ValueError),
            (lambda: balloon.resize(300 * MiB, on_stall=cast("Any", "x")), ValueError),
            (lambda: balloon.reclaim(0), ValueError),
            (lambda: balloon.monitor.execute("x", {"a": object()}), TypeError),
            (lambda: balloon.monitor.execute("x", {"a": math.nan}), ValueError),
            (lambda: balloon.monitor.execute("x", {"a": "\ud800"}), ValueError),
            (lambda: balloon.monitor.execute("x", {"a": loop}), ValueError),
        ]
        for call, error in bad:
            with pytest.raises(error):
                await call()
        assert balloon.target is None
        assert await balloon.actual() == MEMORY  # the monitor has not suffered


async def a_second_client(front: FrontEnd, path: str) -> None:
    if front.name == "client":
        return  # it is connected by its owner
    async with front.open_balloon(path):
        with pytest.raises(MonitorBusy, match=r"did not greet in time: another"):
            async with front.open_balloon(path, timeout=0.2):
                pytest.fail("it was greeted")
    async with front.open_balloon(path) as balloon:
        assert await balloon.actual() == MEMORY


SCENARIOS = [
    asking_and_setting,
    statistics,
    resizing,
    resizing_a_paused_vm,
    reclaiming,
    keeping,
    watching,
    moving_it_twice_at_once,
    refusals,
    bad_arguments,
    a_second_client,
    interrupting_a_reclaim,
    stopping_from_on_progress,
]
