"""A shield holds cancellations back on asyncio, and ends in time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from asyncio_runs import run
from scripted import Session, serve

from qmpballoon import (
    MonitorTimeout,
)
from qmpballoon import asyncio as aio

if TYPE_CHECKING:
    from qmpballoon.testing import ThreadedFake


def test_a_second_cancellation_waits_for_the_cleaning_up(fake: ThreadedFake) -> None:
    async def main() -> None:
        async with aio.open_balloon(fake.socket) as balloon:
            await balloon.set_stats_interval(9)
            fell = asyncio.Event()
            task = asyncio.create_task(
                balloon.reclaim(
                    on_progress=lambda s: fell.set() if s.actual < 2 << 30 else None
                )
            )
            await fell.wait()
            for _ in range(5):  # as often as it takes anything to come to its end
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert balloon.target == 2 << 30
            assert await balloon.get_stats_interval() == 9

    run(main())


def test_what_a_shield_holds_back_comes_at_its_end(fake: ThreadedFake) -> None:
    async def main() -> None:
        async with aio.open_monitor(fake.socket) as monitor:
            went_on: list[object] = []

            async def shielded() -> None:
                with monitor.shield(5):
                    with monitor.shield(5):
                        await monitor.sleep(0.01)
                    pytest.fail("the inner one ended without a cancellation")
                pytest.fail("so did the outer one")

            async def outer_only() -> None:
                with monitor.shield(5):
                    went_on.append(await monitor.execute("query-status"))
                    went_on.append("more")
                pytest.fail("it ended without a cancellation")

            for coroutine in (shielded(), outer_only()):
                task = asyncio.create_task(coroutine)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert went_on[-1] == "more"
            with monitor.shield(5):
                pass
            await monitor.execute("query-status")

    run(main())


def test_a_shield_ends_in_time() -> None:
    def script(session: Session) -> None:
        session.greet()
        session.request()
        session.sock.recv(1)

    async def main(path: str) -> None:
        async with aio.open_monitor(path) as monitor:
            with pytest.raises(MonitorTimeout), monitor.shield(0.05):
                await monitor.execute("x", timeout=3600)

    with serve(script) as path:
        asyncio.run(asyncio.wait_for(main(path), 300))


def test_timeouts_around_a_shield_still_are_timeouts(fake: ThreadedFake) -> None:
    async def main() -> None:
        async with aio.open_monitor(fake.socket) as monitor:

            async def shielded() -> None:
                async with asyncio.timeout(0.01):
                    with monitor.shield(5):
                        await monitor.sleep(0.05)
                    pytest.fail("it went on behind the shield")

            with pytest.raises(TimeoutError):
                await shielded()

    run(main())
