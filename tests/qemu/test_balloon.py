"""The balloon on real guests: what is claimed is what QEMU, /proc and they say."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from qmpballoon import (
    Balloon,
    BalloonStalled,
    GiB,
    Guard,
    MiB,
    MonitorBusy,
    MonitorClosed,
    NoBalloonDevice,
    Progress,
    ResizeResult,
    StatsUnavailable,
    open_balloon,
    open_monitor,
)
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.qemu


@asynccontextmanager
async def opened(
    *,
    memory: int = GiB,
    saved: bool = True,
    **options: Any,  # noqa: ANN401 - what the lab takes
) -> AsyncGenerator[tuple[lab.Guest, Balloon], None]:
    async with (
        lab.boot(memory=memory, saved=saved, **options) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        yield guest, balloon


async def stalled(balloon: Balloon, target: int) -> ResizeResult:
    with pytest.raises(BalloonStalled) as caught:
        await balloon.resize(target)
    return caught.value.result


def kind(result: ResizeResult) -> str | None:
    return result.diagnosis.kind if result.diagnosis else None


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


async def test_the_whole_path() -> None:
    memory, cache = 1280 * MiB, 1000 * MiB
    async with opened(memory=memory) as (guest, balloon):
        # Resident memory is measured: what is saved as filled is not resident.
        await guest.fill_cache(cache)
        interval = await balloon.get_stats_interval()
        # A little is touched in between, by the guest and by QEMU.
        assert balloon.resident() == pytest.approx(resident(guest.pid), abs=8 * MiB)
        report = await balloon.reclaim()
        assert (report.outcome, report.held) == ("done", False)
        assert report.before.stats.disk_caches is not None
        assert report.after.stats.disk_caches is not None
        assert report.before.resident is not None
        assert report.after.resident is not None
        assert report.before.stats.disk_caches >= cache
        fallen = report.before.stats.disk_caches - report.after.stats.disk_caches
        assert fallen >= 0.8 * report.before.stats.disk_caches
        assert report.before.resident - report.after.resident >= 0.8 * fallen
        assert await balloon.get_stats_interval() == interval
        # What is said is what QEMU, the host and the guest say.
        assert report.after.resident == pytest.approx(resident(guest.pid), abs=32 * MiB)
        async with open_monitor(guest.second_socket) as second:
            assert await second.execute("query-balloon") == {"actual": memory}
        assert report.after.stats.free is not None
        assert report.after.stats.total is not None
        # Its kernel may drop some more of the cache by now: what is freed so is both. A
        # guest that was late said what it had before it had got the last of its memory.
        meminfo = await guest.meminfo()
        since = meminfo["MemTotal"] - report.after.stats.total
        assert 0 <= since < memory / 10
        assert report.after.stats.free + report.after.stats.disk_caches == (
            pytest.approx(
                meminfo["MemFree"] + meminfo["Buffers"] + meminfo["Cached"] - since,
                abs=32 * MiB,
            )
        )
        lowest = min(sample.available or 0 for sample in report.timeline)
        headroom = Guard().compute_limits(memory).headroom
        assert lowest >= headroom // 2

        # A second time, held; and deflated by hand.
        await guest.fill_cache(400 * MiB)
        report = await balloon.reclaim(hold=True)
        assert report.held
        assert report.handed_over > 400 * MiB
        assert await balloon.actual() == report.after.actual == balloon.target
        result = await balloon.resize(memory)
        assert (result.outcome, result.actual) == ("reached", memory)
        # Rolled back, where it cannot go.
        result = await balloon.resize(64 * MiB, on_stall="rollback")
        assert (result.outcome, result.actual) == ("rolled-back", memory)
        assert kind(result) == "guest-at-floor"
        await guest.run("true")
        assert await guest.oom_kills() == 0


@pytest.mark.parametrize(
    ("kernel", "hog", "device"),
    [
        (None, 0, "virtio-balloon-pci"),
        (None, 300 * MiB, "virtio-balloon-pci-transitional,id=b,deflate-on-oom=on"),
        ("6.12", 300 * MiB, "virtio-balloon-pci-non-transitional,id=b"),
    ],
)
async def test_a_guest_at_its_floor_stays_alive(
    kernel: str | None, hog: int, device: str
) -> None:
    options: dict[str, Any] = {"kernel": kernel, "device": device, "machine": "q35"}
    async with opened(cache=300 * MiB, hog=hog, **options) as (guest, balloon):
        anonymous = "id=" not in device
        assert ("peripheral-anon" in balloon.path) is anonymous
        assert balloon.device_type == device.partition(",")[0]
        result = await balloon.resize(64 * MiB, on_stall="settle")
        assert result.outcome == "settled"
        assert kind(result) == "guest-at-floor"
        assert result.actual == result.target
        assert hog + 64 * MiB < result.actual < hog + 512 * MiB
        for _ in range(3):
            await guest.run("true")
        assert await balloon.actual() == result.actual
        assert await guest.oom_kills() == 0
        assert "panic" not in guest.console


async def test_a_microvm_s_balloon() -> None:
    options: dict[str, Any] = {
        "machine": "microvm",
        "device": "virtio-balloon-device,id=b",
    }
    async with opened(memory=512 * MiB, saved=False, **options) as (_, balloon):
        assert balloon.device_type == "virtio-balloon-device"
        result = await balloon.resize(300 * MiB)
        assert (result.outcome, result.actual) == ("reached", 300 * MiB)


async def test_no_device() -> None:
    with pytest.raises(NoBalloonDevice, match="-device virtio-balloon-pci"):
        async with opened(memory=256 * MiB, device=None):
            pytest.fail("it was found")


async def test_no_driver_paused_busy_and_killed() -> None:
    async with opened(memory=512 * MiB, driver=False) as (guest, balloon):
        with trio.fail_after(300):
            result = await stalled(balloon, 300 * MiB)
        assert kind(result) == "no-driver"
        with pytest.raises(StatsUnavailable, match="virtio_balloon"):
            await balloon.refresh_stats(timeout=1)
        await guest.load_driver()
        assert (await balloon.refresh_stats()).available is not None
        # What was left behind makes the driver do nothing.
        assert await balloon.actual() == 512 * MiB

        with pytest.raises(MonitorBusy):
            async with open_monitor(guest.socket, timeout=0.5):
                pytest.fail("two clients were served")
        async with open_monitor(guest.second_socket) as second:
            await second.execute("stop")
            result = await stalled(balloon, 300 * MiB)
            assert kind(result) == "paused"
            with pytest.raises(StatsUnavailable, match="paused"):
                await balloon.refresh_stats(timeout=0.5)
            await second.execute("cont")

        def kill(_: object) -> None:
            guest.process.kill()

        with pytest.raises(MonitorClosed) as caught, trio.fail_after(300):
            await balloon.resize(300 * MiB, on_progress=kill)
        assert caught.value.unknown_outcome


async def test_a_reset_meanwhile_is_recovered_from_or_named() -> None:
    async with opened(cache=300 * MiB) as (guest, balloon):
        async with (
            open_monitor(guest.second_socket) as second,
            trio.open_nursery() as nursery,
        ):
            began = trio.Event()

            async def reset() -> None:
                await began.wait()
                await second.execute("system_reset")

            nursery.start_soon(reset)
            result = await balloon.resize(
                400 * MiB, on_stall="settle", on_progress=lambda _: began.set()
            )
        assert result.outcome == "reached" or kind(result) == "reset"
        await guest.ready(boots=2)
        await guest.run("true")
        assert "panic" not in guest.console


async def test_memory_plugged_meanwhile_is_taken_too_or_named() -> None:
    extra = ("-m", "slots=1,maxmem=2G")
    async with opened(cache=300 * MiB, extra=extra) as (guest, balloon):
        async with (
            open_monitor(guest.second_socket) as second,
            trio.open_nursery() as nursery,
        ):
            began = trio.Event()

            async def plug() -> None:
                await began.wait()
                await second.execute(
                    "object-add",
                    {"qom-type": "memory-backend-ram", "id": "m", "size": 512 * MiB},
                )
                await second.execute(
                    "device_add", {"driver": "pc-dimm", "id": "d", "memdev": "m"}
                )

            nursery.start_soon(plug)
            result = await balloon.resize(
                300 * MiB, on_stall="settle", on_progress=lambda _: began.set()
            )
        if result.outcome == "reached":
            assert result.actual == 300 * MiB
        else:
            assert kind(result) == "hot-plug"
        assert (await balloon.query()).total == GiB + 512 * MiB
        await guest.run("true")


async def test_a_burst_in_mid_reclaim_gets_its_memory() -> None:
    async with opened(cache=600 * MiB) as (guest, balloon):
        half_way = trio.Event()

        def watch(progress: Progress) -> None:
            # The guest itself uses 150 MiB. So what the burst leaves it is more than
            # the 128 MiB that may be on their way already.
            if progress.actual < 700 * MiB:
                half_way.set()

        async with trio.open_nursery() as nursery:

            async def burst() -> None:
                await half_way.wait()
                await guest.hog(350 * MiB)

            nursery.start_soon(burst)
            report = await balloon.reclaim(on_progress=watch)
        assert await guest.oom_kills() == 0
        assert report.after.actual == GiB
        assert (await guest.meminfo())["AnonPages"] >= 350 * MiB


async def test_what_a_guest_reads_shows_and_what_it_has_in_its_cache_does_not() -> None:
    # A guest that is saved has read before it was: that is not counted.
    async with opened(memory=256 * MiB, cache=64 * MiB) as (guest, balloon):
        async with balloon.sampler() as sampler:
            await guest.run("dd if=/dev/vda of=/dev/null bs=1M count=32")
            assert (await sampler.take()).disk_reads == 0
            await guest.fill_cache(32 * MiB)
            # A QEMU that has just answered slowly is not asked again at once.
            while (read := (await sampler.take()).disk_reads) == 0:
                pass
        assert read is not None
        # Linux reads ahead, by far less than 8 MiB.
        assert 32 * MiB <= read <= 40 * MiB
        reads = await balloon.disk_reads()
        assert reads is not None
        assert reads.bytes >= read
        assert reads.operations > 0
