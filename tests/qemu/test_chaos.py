"""QEMU and its guest go wrong in the middle of a call.

Every test has its row in docs/reference/faults.md; see tests/support/chaos.py.
"""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from chaos import (
    SECONDS,
    Row,
    ask,
    comes_to,
    ends,
    fault,
    in_the_middle,
    said,
    stays_at,
)

from qmpballoon.balloon import ReclaimReport, StallLimits
from qmpballoon.balloon.guard import Guard
from qmpballoon.errors import BalloonStalled, MonitorClosed, NoBalloonDevice
from qmpballoon.sizes import MiB
from qmpballoon.testing import lab
from qmpballoon.trio import open_balloon

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.testing.lab import Guest

MEMORY = 512 * MiB
TARGET = 160 * MiB
# So that there is time for something to go wrong.
SLOWLY = Guard(max_rate=64 * MiB)
# So slowly that the guest is far from its headroom.
MOST_SLOWLY = Guard(max_rate=8 * MiB)
PATIENT = StallLimits(window=120)

ALL = "all its memory"
ASKED = "the size asked for"
REACHED = "the size it had reached"


@asynccontextmanager
async def opened(
    *,
    command_timeout: float = 10,
    **options: Any,  # noqa: ANN401 - what the lab takes
) -> AsyncGenerator[tuple[lab.Guest, Balloon]]:
    async with (
        lab.boot(memory=MEMORY, cache=256 * MiB, saved=True, **options) as guest,
        open_balloon(guest.socket, command_timeout=command_timeout) as balloon,
    ):
        yield guest, balloon


@fault("QEMU is killed during `resize`")
async def test_killed_in_resize() -> Row:
    async with opened() as (guest, balloon):
        async with in_the_middle(balloon, balloon.resize, TARGET) as call:
            guest.process.kill()
        return said(call.got), await ends(guest)


@fault("QEMU is killed during `reclaim`")
async def test_killed_in_reclaim() -> Row:
    async with opened() as (guest, balloon):
        async with in_the_middle(balloon, balloon.reclaim, guard=SLOWLY) as call:
            guest.process.kill()
        return said(call.got), await ends(guest)


@fault("QEMU is told to `quit` during `reclaim`")
async def test_quit() -> Row:
    async with opened() as (guest, balloon):
        async with in_the_middle(balloon, balloon.reclaim, guard=SLOWLY) as call:
            await ask(guest, "quit")
        left = await ends(guest)
        assert guest.process.returncode == 0
        return said(call.got), left


@fault("QEMU is stopped, and continues before a command times out, during `resize`")
async def test_stopped_for_a_moment() -> Row:
    async with opened() as (guest, balloon):
        async with in_the_middle(balloon, balloon.resize, TARGET) as call:
            guest.process.send_signal(signal.SIGSTOP)
            # The call has asked, and waits for the answer.
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert call.got is None
            guest.process.send_signal(signal.SIGCONT)
        await stays_at(guest, TARGET)
        return said(call.got), ASKED


@fault("QEMU is stopped until a command times out during `resize`, and continues then")
async def test_stopped_in_resize() -> Row:
    async with opened(command_timeout=1) as (guest, balloon):
        async with in_the_middle(balloon, balloon.resize, TARGET) as call:
            guest.process.send_signal(signal.SIGSTOP)
        guest.process.send_signal(signal.SIGCONT)
        await stays_at(guest, call.actual)
        return said(call.got), REACHED


@fault("QEMU is stopped until a command times out during `reclaim`, and continues then")
async def test_stopped_in_reclaim() -> Row:
    async with opened(command_timeout=1) as (guest, balloon):
        interval = await balloon.get_stats_interval()
        async with in_the_middle(balloon, balloon.reclaim, guard=SLOWLY) as call:
            guest.process.send_signal(signal.SIGSTOP)
        guest.process.send_signal(signal.SIGCONT)
        await comes_to(guest, MEMORY)
        assert await balloon.get_stats_interval() == interval
        return said(call.got), ALL


@fault("The VM is paused during `resize`")
async def test_paused_in_resize() -> Row:
    async with opened() as (guest, balloon):
        async with in_the_middle(balloon, balloon.resize, TARGET) as call:
            await ask(guest, "stop")
        await ask(guest, "cont")
        assert isinstance(call.got, BalloonStalled)
        assert TARGET < call.got.result.actual < MEMORY
        await stays_at(guest, call.got.result.actual)
        return said(call.got), REACHED


@fault("The VM is paused and resumed during `resize`")
async def test_paused_and_resumed() -> Row:
    async with opened() as (guest, balloon):
        async with in_the_middle(balloon, balloon.resize, TARGET) as call:
            await ask(guest, "stop")
            await ask(guest, "cont")
        await stays_at(guest, TARGET)
        return said(call.got), ASKED


@fault("The VM is paused during `reclaim`, and resumed later")
async def test_paused_in_reclaim() -> Row:
    async with opened() as (guest, balloon):
        async with in_the_middle(balloon, balloon.reclaim, guard=SLOWLY) as call:
            await ask(guest, "stop")
        assert isinstance(call.got, ReclaimReport)
        assert call.got.held
        assert "has not answered" in call.got.reason
        await ask(guest, "cont")
        await comes_to(guest, MEMORY)
        return said(call.got), ALL


async def panic(guest: lab.Guest) -> None:
    """Crash the guest's kernel, however busy it is."""
    await ask(guest, "inject-nmi")
    await guest.wait_for_console("Kernel panic")


@fault("The guest panics during `resize`")
async def test_panic_in_resize() -> Row:
    async with opened() as (guest, balloon):
        await guest.run("echo 1 >/proc/sys/kernel/unknown_nmi_panic")
        async with in_the_middle(balloon, balloon.resize, TARGET) as call:
            await panic(guest)
        assert isinstance(call.got, BalloonStalled)
        result = call.got.result
        assert TARGET < result.actual < MEMORY
        assert await balloon.actual() == result.actual
        # A larger one if its silence was noticed before the stall.
        assert balloon.target == result.target >= result.actual
        return said(call.got), f"a dead kernel, and {REACHED}"


@fault("The guest panics during `reclaim`")
async def test_panic_in_reclaim() -> Row:
    async with opened() as (guest, balloon):
        await guest.run("echo 1 >/proc/sys/kernel/unknown_nmi_panic")
        async with in_the_middle(balloon, balloon.reclaim, guard=SLOWLY) as call:
            await panic(guest)
        assert isinstance(call.got, ReclaimReport)
        assert "has not answered" in call.got.reason
        assert call.got.held
        # What the next kernel is to have.
        assert balloon.target == MEMORY
        await ask(guest, "system_reset")
        await guest.ready(boots=2)
        # Its driver has nothing to do, and never tells QEMU 7.2 a size: ask itself.
        assert (await guest.meminfo())["MemTotal"] > MEMORY * 0.85
        return said(call.got), f"a dead kernel; {ALL} when it is restarted"


@fault(
    "The guest is restarted during `resize`, and is back before it counts as stalled"
)
async def test_restarted() -> Row:
    async with opened() as (guest, balloon):
        async with in_the_middle(
            balloon, balloon.resize, TARGET, limits=PATIENT
        ) as call:
            await ask(guest, "system_reset")
            await guest.ready(boots=2)
        await stays_at(guest, TARGET)
        return said(call.got), ASKED


@fault("The balloon is unplugged during `resize`")
async def test_unplugged_in_resize() -> Row:
    async with opened() as (guest, balloon):
        async with in_the_middle(balloon, balloon.resize, TARGET) as call:
            await ask(guest, "device_del", id="balloon0")
        assert isinstance(call.got, NoBalloonDevice)
        return said(call.got), await without_balloon(guest)


@fault("The balloon is unplugged during `reclaim`")
async def test_unplugged_in_reclaim() -> Row:
    async with opened() as (guest, balloon):
        async with in_the_middle(balloon, balloon.reclaim, guard=SLOWLY) as call:
            await ask(guest, "device_del", id="balloon0")
        assert isinstance(call.got, NoBalloonDevice)
        return said(call.got), await without_balloon(guest)


async def without_balloon(guest: lab.Guest) -> str:
    """See that the guest has all that the balloon held."""
    meminfo = await guest.meminfo()
    # The kernel keeps some for itself.
    assert meminfo["MemTotal"] > MEMORY - 64 * MiB
    assert await guest.oom_kills() == 0
    return ALL


async def migrate(guest: Guest, incoming: Path) -> None:
    """Move the guest to another QEMU, which waits for it at a socket."""
    while not incoming.exists():  # it greets before that  # noqa: ASYNC110, ASYNC240
        await trio.sleep(0.05)
    await ask(guest, "migrate", uri=f"unix:{incoming}")
    while (progress := await ask(guest, "query-migrate"))["status"] != "completed":
        assert progress["status"] != "failed", progress
        await trio.sleep(0.05)


@fault("The VM moves to another QEMU during `resize`, and the first one quits")
async def test_migrated() -> Row:
    async with opened() as (guest, balloon):
        incoming = guest.socket.parent / "incoming"
        extra = ("-incoming", f"unix:{incoming}")
        async with lab.boot(memory=MEMORY, extra=extra) as moved:
            await balloon.set_stats_interval(7)
            # The target itself, not step by step: nobody looks after it there.
            async with in_the_middle(
                balloon, balloon.resize, TARGET, unguarded=True, limits=PATIENT
            ) as call:
                # It would be done before the migration is.
                await ask(guest, "stop")
                await migrate(guest, incoming)
                assert call.got is None
                await ask(guest, "quit")
            assert isinstance(call.got, MonitorClosed)
            async with open_balloon(moved.socket) as there:
                assert await there.actual() > TARGET
                assert await there.get_stats_interval() == 0
                assert (await there.stats()).last_update is None
                await ask(moved, "cont")
                await stays_at(moved, TARGET)
                assert (await there.refresh_stats()).available is not None
        return said(call.got), f"{ASKED}, in the new QEMU, which asks for no statistics"


@fault("The VM moves to another QEMU during `reclaim`")
async def test_migrated_in_reclaim() -> Row:
    async with opened() as (guest, balloon):
        incoming = guest.socket.parent / "incoming"
        extra = ("-incoming", f"unix:{incoming}")
        async with lab.boot(memory=MEMORY, extra=extra) as moved:
            with pytest.MonkeyPatch.context() as patch:
                async with in_the_middle(
                    balloon, balloon.reclaim, guard=MOST_SLOWLY
                ) as call:
                    # Nobody's patience is over before the migration is, however long
                    # that takes: time stands still meanwhile.
                    now, began = balloon.monitor.now, balloon.monitor.now()
                    patch.setattr(balloon.monitor, "now", lambda: began)
                    await ask(guest, "stop")
                    await migrate(guest, incoming)
                    took = now() - began
                    patch.setattr(balloon.monitor, "now", lambda: now() - took)
            assert isinstance(call.got, ReclaimReport)
            # Resumed, it would run twice.
            assert call.got.outcome == "stopped"
            assert "where it runs now" in call.got.reason
            assert not await balloon.is_running()
            async with open_balloon(moved.socket) as there:
                assert await there.actual() < MEMORY
                await ask(moved, "cont")
                with trio.fail_after(SECONDS):
                    await there.resize(MEMORY)
            await stays_at(moved, MEMORY)
        left = "the last target, in the new QEMU, until somebody sets another"
        return said(call.got), left
