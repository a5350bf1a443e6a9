"""A monitor of one's own over a client that somebody else holds, and goes on using."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import scripted
from added_monitors import left_behind, wait_until_gone
from asyncio_runs import run
from cancelling import descriptors
from qemu.qmp import QMPClient

from qmpballoon import MonitorClosed, OwnMonitorUnavailable
from qmpballoon import asyncio as aio
from qmpballoon.sizes import GiB
from qmpballoon.testing import serve

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qmpballoon.qmp import Request


@asynccontextmanager
async def connected(place: str | tuple[str, int]) -> AsyncGenerator[QMPClient]:
    client = QMPClient("orchestrator")
    await client.connect(place)
    try:
        yield client
    finally:
        await client.disconnect()


def test_the_client_goes_on() -> None:
    async def main() -> None:
        async with connected(fake.socket) as client:
            before = descriptors()
            async with aio.open_balloon(client, own=True) as balloon:
                assert isinstance(balloon.monitor, aio.AsyncioMonitor)
                assert balloon.monitor.name == "the monitor of orchestrator"
                with balloon.monitor.subscribe("STOP") as events:
                    await client.execute("stop")
                    await events.receive()
                await client.execute("cont")
                assert (await balloon.resize(GiB)).outcome == "reached"
            assert await client.execute("query-status")
            wait_until_gone(fake)
            while descriptors() != before:
                pass

    with serve(version="11.1") as fake:
        run(main())


def test_two_at_once() -> None:
    """QEMU keeps the descriptor that came last; each has to come to its own."""

    async def use(client: QMPClient) -> None:
        async with aio.open_monitor(client, own=True) as monitor:
            await monitor.execute("query-status")
            count = len(fake.do(left_behind))
            assert 1 <= count <= 5

    async def main() -> None:
        async with connected(fake.socket) as client:
            await asyncio.gather(*(use(client) for _ in range(5)))
        wait_until_gone(fake)

    with serve(version="11.1") as fake:
        run(main())


def test_an_older_qemu_is_told_of() -> None:
    async def main() -> None:
        async with connected(fake.socket) as client:
            with pytest.raises(OwnMonitorUnavailable, match="or with find_balloon"):
                async with aio.open_monitor(client, own=True):
                    pytest.fail("it opened")
            assert fake.do(left_behind) == []
            assert await (await aio.find_balloon(client)).actual()

    with serve() as fake:
        run(main())


def be_new(session: scripted.Session) -> None:
    session.greet()
    while True:
        request: Request = session.request()
        assert request.command in {"query-version", "query-chardev"}
        session.answer(request, {})


def test_a_client_over_tcp() -> None:
    async def main() -> None:
        async with connected(place) as client:
            with pytest.raises(OwnMonitorUnavailable, match="requires a UNIX socket"):
                async with aio.open_monitor(client, own=True):
                    pytest.fail("it opened")

    with scripted.serve(be_new, family=socket.AF_INET) as place:
        run(main())


def test_a_client_that_is_not_connected() -> None:
    async def main() -> None:
        with pytest.raises(
            MonitorClosed, match="vm1: the connection has ended, or was"
        ):
            async with aio.open_monitor(QMPClient(), own=True, name="vm1"):
                pytest.fail("it opened")

    run(main())


def test_a_client_is_not_shared_by_mistake() -> None:
    async def main() -> None:
        for own in (False, "auto"):
            with pytest.raises(ValueError, match=r"find_balloon\(client\) shares it"):
                async with aio.open_balloon(QMPClient(), own=own):
                    pytest.fail("it opened")
        with pytest.raises(ValueError, match="leave tls out"):
            async with aio.open_monitor(
                QMPClient(), own=True, tls=ssl.create_default_context()
            ):
                pytest.fail("it opened")

    run(main())
