"""The same calls have the same results on every front end, against the fake."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from frontends import ALL, on_each
from notes import hold_elsewhere
from scenarios import CACHE, MEMORY, SCENARIOS

from qmpballoon import BalloonBusy, blocking
from qmpballoon import asyncio as aio
from qmpballoon import trio as client
from qmpballoon.testing import GuestConfig, MachineConfig, serve

if TYPE_CHECKING:
    from pathlib import Path

    from frontends import FrontEnd, Scenario

    from qmpballoon import GuestStats
    from qmpballoon._transport.monitor_base import MonitorBase

MEMORY_OF_PYTHON = 1 << 20  # and more
MACHINE = MachineConfig(memory=MEMORY, guest=GuestConfig(used=60 << 20, cache=CACHE))


@on_each(*ALL)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_on_the_fake(front: FrontEnd, scenario: Scenario) -> None:
    with serve(MACHINE) as fake:
        front.run(scenario(front, fake.socket))


def test_a_balloon_has_age_and_resident_memory_from_any_monitor() -> None:
    async def on_trio(path: str) -> None:
        async with client.open_monitor(path) as monitor:
            check(monitor, await (await client.find_balloon(monitor)).refresh_stats())
            monitor.pid = os.getpid()
            balloon = await client.find_balloon(monitor)
            assert (balloon.resident() or 0) > MEMORY_OF_PYTHON

    async def on_asyncio(path: str) -> None:
        async with aio.open_monitor(path) as monitor:
            check(monitor, await (await aio.find_balloon(monitor)).refresh_stats())
            monitor.pid = os.getpid()
            balloon = await aio.find_balloon(monitor)
            assert (balloon.resident() or 0) > MEMORY_OF_PYTHON

    def in_blocking_code(path: str) -> None:
        with blocking.open_monitor(path) as monitor:
            check(monitor, blocking.find_balloon(monitor).refresh_stats())
            monitor.pid = os.getpid()
            assert (blocking.find_balloon(monitor).resident() or 0) > MEMORY_OF_PYTHON

    def check(monitor: MonitorBase, stats: GuestStats) -> None:
        assert stats.age is not None
        assert abs(monitor.wall_clock() - time.time()) < 3600
        assert monitor.resident() is None  # the fake is no QEMU

    with serve(MACHINE) as fake:
        trio.run(on_trio, fake.socket)
        asyncio.run(on_asyncio(fake.socket))
        in_blocking_code(fake.socket)


@on_each(*ALL)
def test_who_finds_that_another_process_holds_memory_takes_nothing(
    front: FrontEnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QMPBALLOON_RUNTIME_DIR", str(tmp_path))

    async def main(path: str) -> None:
        async with front.open_balloon(path) as balloon:
            # The fake is no QEMU, so this process stands for one.
            monitor: Any = balloon.monitor
            getattr(monitor, "blocking", monitor).pid = os.getpid()
            assert balloon.read_holder() is None
            holder = hold_elsewhere(tmp_path, os.getpid(), MEMORY)
            assert (balloon.read_holder(), balloon.read_owed()) == (holder, None)
            for call in (balloon.reclaim, balloon.keep):
                with pytest.raises(BalloonBusy, match=f"held by process {holder}, wh"):
                    await call()
            assert balloon.target is None
            assert (await balloon.plan_reclaim()).holder == holder
            await balloon.resize(MEMORY)  # whoever decides anew is not refused
            assert balloon.read_holder() is None

    with serve(MACHINE) as fake:
        front.run(main(fake.socket))
