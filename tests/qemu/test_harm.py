"""Real guests: memory kept until it is needed, others' targets, hosts with nothing."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import resource
import signal
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import evolve
from chaos import stays_at
from command import start

from qmpballoon import (
    GiB,
    Guard,
    KiB,
    MiB,
    Progress,
    ReclaimReport,
    StallLimits,
    UnixAddress,
    blocking,
    find_balloon,
    open_balloon,
    open_monitor,
)
from qmpballoon.fleet import (
    Host,
    Move,
    Rules,
    VmSpec,
    open_fleet,
    run_control_loop,
)
from qmpballoon.testing import lab

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from qmpballoon import Balloon, ResizeResult, TrioMonitor

pytestmark = pytest.mark.qemu


def kind(result: ResizeResult) -> str | None:
    return result.diagnosis.kind if result.diagnosis else None


async def test_what_is_kept_is_there_when_the_guest_needs_it() -> None:
    async with (
        lab.boot(memory=GiB, cache=600 * MiB, saved=True) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        kept, has_it = trio.Event(), trio.Event()
        reports: list[ReclaimReport] = []

        def look(seen: Progress) -> None:
            if seen.sample.mark == "kept":
                kept.set()

        async def keep() -> None:
            reports.append(await balloon.keep(until=has_it.is_set, on_progress=look))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep)
            await kept.wait()
            assert (await guest.meminfo())["MemTotal"] < 500 * MiB
            # As fast as it is given memory, however busy this host is.
            for _ in range(10):
                await guest.hog(40 * MiB)
                while (await guest.meminfo())["MemAvailable"] < 60 * MiB:
                    pass
            has_it.set()
        (report,) = reports
        assert report.outcome == "done"
        assert report.reason.startswith("kept for ")
        assert report.after.actual == GiB == await balloon.actual()
        assert await guest.oom_kills() == 0
        # A second time it is only kept for a while.
        await guest.release()
        report = await balloon.keep(seconds=2)
        assert "as long as it was to be" in report.reason
        assert await balloon.actual() == GiB


@pytest.mark.parametrize("kernel", [None, "6.12"])
async def test_a_guest_that_begins_to_swap_is_let_alone(
    kernel: str | None,
) -> None:
    async with (
        boot_preferring_to_swap(kernel) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        report = await balloon.reclaim(guard=SWAP_ALONE)
        marks = [sample.mark for sample in report.timeline if sample.mark]
        assert marks[0] == "held back"
        assert (report.after.stats.swap_out or 0) > 0
        # Its cache is in use, and all there: a guest that is not let alone has 5 MiB.
        # How much of the rest it swaps before it is looked at is up to its kernel.
        lowest = min(report.timeline, key=lambda sample: sample.available or 0)
        assert (lowest.available or 0) > 100 * MiB, report.timeline
        assert await balloon.actual() == 512 * MiB
        assert await guest.oom_kills() == 0


# On a tmpfs, as only swap can take it; and newer kernels write no zeroes to disk.
MAKE_SEED = "tr '\\0' x </dev/zero | dd of=/seed bs=1M count=1 iflag=fullblock"
FILL_TMPFS = "for part in $(seq {}); do cat /seed; done >>/held"
# It will swap 200 MiB rather than drop a cache of 150 MiB: what was read a second time
# is in use. With generations of pages the kernel does as it likes, whatever it is told.
PREFER_TO_SWAP = f"""
generations=/sys/kernel/mm/lru_gen/enabled
if [ -e $generations ]; then echo n >$generations; fi
echo 200 >/proc/sys/vm/swappiness
for time in first second; do dd if=/dev/vda of=/dev/null bs=1M count=150; done
{MAKE_SEED}
{FILL_TMPFS.format(200)}
"""
# The lab's own disk, the source of page cache, comes first.
SWAP_ON = "mkswap /dev/vdb && swapon /dev/vdb"

# What each call does with a guest that suffers, by the same rule

SIZE = 512 * MiB
# Nothing but the guest's swapping, faults or silence holds a call up.
ASKED = 96 * MiB  # more than such a guest can give
# Slowly, in small steps: a guest on a busy host is seen late.
SWAP_ALONE = Guard(
    headroom=0,
    floor=64 * MiB,
    swap_rate=256 * KiB,
    fault_rate=math.inf,
    max_rate=64 * MiB,
    reread_within=0,
)
FAULTS_ALONE = evolve(SWAP_ALONE, swap_rate=math.inf, fault_rate=20.0)


async def take_from(guest: lab.Guest, call: str, guard: Guard) -> str:
    """Have a call take what it can; return what came of it in words."""
    if call == "fleet":
        return await take_by_fleet(guest, guard)
    async with open_balloon(guest.socket) as balloon:
        if call == "resize":
            result = await balloon.resize(ASKED, guard=guard, on_stall="settle")
            assert result.outcome == "settled"
            return result.diagnosis.detail if result.diagnosis else ""
        if call == "keep":
            report = await balloon.keep(guard=guard, seconds=60)
        else:
            report = await balloon.reclaim(guard=guard)
        assert report.after.actual == SIZE or report.held
        return report.reason


async def take_by_fleet(guest: lab.Guest, guard: Guard) -> str:
    """Have a fleet shrink its only VM; the guard's rates are the default ones."""
    spec = VmSpec(
        "vm", UnixAddress(str(guest.socket)), floor=str(guard.floor), headroom="0"
    )
    async with open_fleet(lambda: [spec], random.Random(0)) as fleet:
        assert await fleet.wait_until_known(60)
        fleet.start_move(Move("vm", SIZE, ASKED, "test"))
        assert await fleet.wait_for_moves(60)
        (seen,) = fleet.list_views()
        assert (seen.counters.moves, seen.counters.stalls) == (1, 1)
        return seen.detail


async def check_is_well(guest: lab.Guest) -> None:
    """Check that nothing pulls at a guest, and that it has enough."""
    assert await guest.oom_kills() == 0
    async with open_balloon(guest.socket) as balloon:
        size = await balloon.actual()
        await stays_at(guest, size)
        # How much it gives before it suffers is up to its kernel.
        assert size > ASKED + 16 * MiB


@pytest.mark.parametrize("kernel", [None, "6.12"])
async def test_a_guest_that_begins_to_swap_while_it_is_kept_small_gets_some_back(
    kernel: str | None,
) -> None:
    # Where the host is too busy to see it in time, the balloon saves the guest.
    device = "virtio-balloon-pci,id=balloon0,deflate-on-oom=on"
    async with (
        boot_with_swap(kernel, setup=MAKE_SEED, device=device) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        kept = trio.Event()
        targets: list[int] = []

        def look(seen: Progress) -> None:
            if seen.sample.mark == "kept":
                kept.set()
            if kept.is_set():
                targets.append(seen.sample.target or 0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(balloon.keep, guard=SWAP_ALONE, on_progress=look)
            )
            await kept.wait()
            # More than it has: its tmpfs can only be swapped out.
            await guest.run(
                f"for ten in $(seq 18); do {FILL_TMPFS.format(10)};"
                " usleep 100000; done",
                timeout=500,
            )
            assert int(await guest.run("stat -c %s /held")) == 180 * MiB
            nursery.cancel_scope.cancel()
        # A step each time that it began to swap, or everything.
        assert max(targets) >= targets[0] + 100 * MiB
        assert await guest.oom_kills() == 0


@pytest.mark.parametrize("call", ["resize", "fleet"])
@pytest.mark.parametrize("kernel", [None, "6.12"])
async def test_a_guest_that_begins_to_swap_is_let_alone_by_every_call(
    kernel: str | None, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with boot_preferring_to_swap(kernel) as guest:
        # Then a fleet's step, 128 MiB, takes longer than a guest may be in trouble.
        await slow_down_swap(guest, 8 * MiB)
        # A fleet's view has no reason if the guest gave the better half; the log has.
        why = await take_from(guest, call, SWAP_ALONE) + caplog.text
        assert "swaps" in why or "suffers" in why or "free" in why
        await check_is_well(guest)


@pytest.mark.parametrize("call", ["reclaim", "keep", "resize", "fleet"])
async def test_a_guest_that_begins_to_fault_is_let_alone_by_every_call(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "qmpballoon.balloon")
    async with boot_preferring_to_swap(None) as guest:
        # It goes through its memory again and again.
        await guest.run(
            "(while usleep 400000; do echo; done | awk '"
            ' BEGIN { t = "0123456789abcdef"; for (i = 0; i < 10; i++) t = t t;'
            "   for (i = 0; i < 3750; i++) a[i] = t i }"
            " { for (i = 0; i < 3750; i++) n += length(a[i]) }' &) >/dev/null 2>&1"
        )
        await guest.wait_for(lambda memory: memory["AnonPages"] > 55 * MiB)
        why = await take_from(guest, call, FAULTS_ALONE) + caplog.text
        # Linux 6.12 tells first how few of its pages it can free.
        assert re.search("faults|suffers|swaps|can free", why)
        await check_is_well(guest)


@pytest.mark.parametrize("call", ["reclaim", "keep", "resize", "fleet"])
async def test_a_guest_that_falls_silent_is_asked_to_have_everything(
    call: str,
) -> None:
    async with (
        lab.boot(memory=SIZE, saved=True) as guest,
        open_monitor(guest.second_socket) as other,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(halt_when_it_shrinks, guest, other)
        slowly = Guard(headroom=0, floor=64 * MiB, max_rate=40 * MiB)
        why = await take_from(guest, call, slowly)
        assert "answer" in why or "hangs" in why
        nursery.cancel_scope.cancel()


async def halt_when_it_shrinks(guest: lab.Guest, other: TrioMonitor) -> None:
    """Halt the guest's kernel: QEMU runs on, and nobody answers."""
    async for sample in (await find_balloon(other)).watch(0.1):
        if sample.actual < SIZE - 60 * MiB:
            break
    # After a panic it would keep a processor of the host busy.
    await guest.run("halt -f")


@asynccontextmanager
async def boot_with_swap(
    kernel: str | None,
    *,
    setup: str = "",
    device: str = "virtio-balloon-pci,id=balloon0",
) -> AsyncGenerator[lab.Guest, None]:
    # Zeroes, and a file of QEMU's own for what is written. No faster than this, on a
    # host of whatever speed: a guest that swaps 200 MiB between two samples has done so
    # before anybody can notice.
    disk = f"id=swap,driver=null-co,size={SIZE},read-zeroes=on,snapshot=on,if=virtio"
    extra = ("-drive", f"{disk},throttling.bps-write={32 * MiB}")
    async with lab.boot(
        memory=SIZE, extra=extra, kernel=kernel, device=device, setup=setup, saved=True
    ) as guest:
        # What is written is not saved with a guest: it can swap only from now on.
        await guest.run(SWAP_ON)
        yield guest


def boot_preferring_to_swap(
    kernel: str | None,
) -> AbstractAsyncContextManager[lab.Guest]:
    return boot_with_swap(kernel, setup=PREFER_TO_SWAP)


async def slow_down_swap(guest: lab.Guest, rate: int) -> None:
    """Have the disk that a guest swaps to take so many bytes a second."""
    others = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr"), 0)
    async with open_monitor(guest.second_socket) as monitor:
        limits = {"device": "swap", "bps_wr": rate} | others
        await monitor.execute("block_set_io_throttle", limits)


async def test_another_client_s_targets_are_noticed() -> None:
    async with (
        lab.boot(memory=2 * GiB, cache=300 * MiB, saved=True) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        result = await shrink_and_grow_against_another(guest, balloon)
        assert (result.outcome, kind(result)) == ("settled", "overridden")
        await stays_at(guest, result.actual)


async def shrink_and_grow_against_another(
    guest: lab.Guest, balloon: Balloon
) -> ResizeResult:
    async with open_monitor(guest.second_socket) as other:
        began = trio.Event()

        async def interfere(target: int) -> None:
            await began.wait()
            await other.execute("balloon", {"value": target})

        def on_the_way(progress: Progress) -> None:
            if progress.actual < progress.before - 200 * MiB:
                began.set()

        # While it shrinks our next step overrules a target that was set once.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interfere, 2 * GiB)
            result = await balloon.resize(
                700 * MiB, on_progress=on_the_way, on_stall="settle"
            )
        assert (result.outcome, result.actual) == ("reached", 700 * MiB)
        # While it grows nobody has to set another one but them.
        began = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interfere, 900 * MiB)
            return await balloon.resize(
                2 * GiB, on_progress=lambda _: began.set(), on_stall="settle"
            )


async def test_another_client_s_target_in_place_of_what_is_given_back_is_told() -> None:
    async with (
        lab.boot(memory=GiB, cache=300 * MiB, saved=True) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        with blocking.open_monitor(guest.second_socket) as other:
            given_back = False

            def look(seen: Progress) -> None:
                nonlocal given_back
                if seen.sample.target == GiB and not given_back:
                    given_back = True
                    # At once: the guest has it all in some tenths of a second.
                    other.execute("balloon", {"value": 600 * MiB})

            report = await balloon.reclaim(on_progress=look)
        assert (report.held, report.after.actual) == (True, 600 * MiB), report
        assert "another client sets targets" in report.reason


@pytest.mark.skipif(
    os.geteuid() != 0 and 0 <= resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < 2 * GiB,
    reason="QEMU may not lock a guest's memory here (ulimit -l)",
)
async def test_locked_memory_is_nothing_for_the_host() -> None:
    extra = ("-overcommit", "mem-lock=on")
    # Else a GiB for translated code is locked, too.
    accel = "tcg,tb-size=32"
    # Resident memory is measured: no saved guest.
    async with (
        lab.boot(memory=512 * MiB, cache=200 * MiB, extra=extra, accel=accel) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        result = await balloon.resize(300 * MiB)
        assert (result.outcome, kind(result)) == ("reached", "inhibited")


async def test_a_balloon_that_is_too_slow_is_called_slow() -> None:
    async with (
        lab.boot(memory=GiB, saved=True) as guest,
        open_balloon(guest.socket) as balloon,
    ):
        demanding = StallLimits(rate=1024 * GiB, window=0.3)
        result = await balloon.resize(400 * MiB, on_stall="settle", limits=demanding)
        assert (result.outcome, kind(result)) == ("settled", "slow")
        # A driver ends the batch of pages it is at, and comes back.
        await stays_at(guest, result.actual)


async def test_memory_plugged_meanwhile_is_named() -> None:
    extra = ("-m", "slots=1,maxmem=4G")
    async with (
        lab.boot(memory=2 * GiB, extra=extra, saved=True) as guest,
        open_balloon(guest.socket) as balloon,
        open_monitor(guest.second_socket) as other,
        trio.open_nursery() as nursery,
    ):
        began = trio.Event()

        async def plug() -> None:
            await began.wait()
            backend = {"qom-type": "memory-backend-ram", "id": "m", "size": GiB}
            await other.execute("object-add", backend)
            dimm = {"driver": "pc-dimm", "id": "d", "memdev": "m"}
            await other.execute("device_add", dimm)

        nursery.start_soon(plug)
        result = await balloon.resize(
            GiB, unguarded=True, on_stall="settle", on_progress=lambda _: began.set()
        )
        assert kind(result) == "hot-plug"


@pytest.mark.parametrize("moment", ["at once", "taking", "keeping"])
async def test_ctrl_c_at_any_moment_gives_back(moment: str) -> None:
    async with lab.boot(memory=GiB, cache=GiB // 2, saved=True) as guest:
        async with start(
            *("reclaim", guest.socket, "--keep", "--headroom", "128M")
        ) as command:
            said = b""
            while moment != "at once" and moment.encode() not in said:
                said += await command.stdout.receive_some()
            if moment == "at once":
                await command.stdout.receive_some()  # its title
            command.process.send_signal(signal.SIGINT)
            # Once something was taken, the report is how it ends; before that, this is.
            status = await command.process.wait()
            assert status in ({0, 130} if moment == "at once" else {0})
            assert ("interrupted: " in await command.said()) == (status == 130)
        async with open_balloon(guest.second_socket) as balloon:
            with trio.fail_after(300):
                # QEMU tells of a change at most once a second: asking is quicker.
                while await balloon.actual() != GiB:  # noqa: ASYNC110
                    await trio.sleep(0.05)
        assert await guest.oom_kills() == 0


# A host that is short of memory, and not out of it


@pytest.mark.parametrize("kernel", [None, "6.12"])
async def test_nobody_is_killed_beside_memory_that_the_host_has(
    kernel: str | None,
) -> None:
    """The host is to keep 23 of 23.5 GiB, and has 22 and more for its only guest."""
    total, step = 23 * GiB + GiB // 2, 50 * MiB
    rules = Rules.for_host(total, 23 * GiB)

    def read(held: int, promised: int) -> Host:
        return Host(total, total - GiB // 2 - held, promised)

    async with lab.boot(memory=GiB, kernel=kernel, saved=True) as guest:
        spec = VmSpec("vm", UnixAddress(str(guest.socket)), floor="33%")
        async with (
            open_fleet(lambda: [spec], random.Random(0)) as fleet,
            trio.open_nursery() as nursery,
        ):
            assert await fleet.wait_until_known(60)
            nursery.start_soon(run_control_loop, fleet, read, rules)
            with trio.fail_after(300):
                while fleet.list_views()[0].counters.taken < 300 * MiB:  # noqa: ASYNC110
                    await trio.sleep(0.25)
            began = trio.current_time()
            for number in range(12):
                await trio.sleep_until(began + number)
                await guest.hog(step)
            (seen,) = fleet.list_views()
            assert seen.counters.given >= 200 * MiB
            assert await guest.oom_kills() == 0
            nursery.cancel_scope.cancel()
