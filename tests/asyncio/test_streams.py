"""Writing more than the kernel takes at once, and to peers that do not read."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from asyncio_world import connected, find_number, run_virtual, settle

from qmpballoon.asyncio._streams import SocketTransport
from qmpballoon.errors import MonitorClosed
from qmpballoon.qmp import Return

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_what_the_kernel_does_not_take_at_once_is_sent_later_and_in_order() -> None:
    async def main() -> None:
        async with connected(narrow=True) as (monitor, peer):
            texts = [f"{number}" * 200_000 for number in range(3)]
            calls = [
                asyncio.create_task(monitor.execute("echo", {"text": text}))
                for text in texts
            ]
            await settle()
            for _ in calls:
                request = await peer.request()
                await peer.reply(Return(request.arguments["text"], request.id))
            assert await asyncio.gather(*calls) == texts

    run_virtual(main())


def test_closing_does_not_wait_for_a_peer_that_does_not_read() -> None:
    async def main() -> None:
        async with connected(narrow=True) as (monitor, peer):
            large = asyncio.create_task(monitor.execute("x", {"text": "x" * 1_000_000}))
            await settle()
            assert not large.done()
        with pytest.raises(MonitorClosed, match="by us"):
            await large
        assert peer.sock.fileno() == -1

    run_virtual(main())


def test_what_is_closed_twice_is_closed() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)  # noqa: FBT003
        ends: list[OSError | None] = []
        with theirs:
            transport = SocketTransport(ours, None)
            transport.start_reading(lambda _: None, ends.append)
            transport.close()
            transport.close()
            assert theirs.recv(1) == b""
        await settle()
        assert ends == []

    run_virtual(main())


@pytest.mark.parametrize("waits_to_write", [False, True])
def test_a_monitor_whose_number_another_one_has_ends_and_leaves_it_alone(
    *, waits_to_write: bool
) -> None:
    async def main() -> None:
        async with connected(narrow=True) as (lost, peer):
            size = 1_000_000 if waits_to_write else 1
            waiting = asyncio.create_task(lost.execute("x", {"text": "x" * size}))
            await settle()
            async with connected(number=find_number(lost)) as (monitor, other):
                with pytest.raises(MonitorClosed, match="Bad file descriptor"):
                    await waiting
                other.start_echo()
                for name in ("first", "second"):
                    assert await monitor.execute(name) == name
                peer.sock.close()
                await lost.aclose()
                assert await monitor.execute("third") == "third"

    run_virtual(main())


@pytest.mark.parametrize("reads", [False, True])
def test_a_descriptor_that_somebody_closes_ends_its_monitor_quietly(
    *, reads: bool
) -> None:
    async def main() -> None:
        async with connected() as (monitor, _):
            os.close(find_number(monitor))
            if reads:
                with pytest.raises(MonitorClosed, match="Bad file descriptor"):
                    await monitor.execute("x")

    run_virtual(main())


def test_a_number_that_was_taken_from_a_monitor_is_left_to_who_has_it() -> None:
    async def main() -> None:
        with open(os.devnull, "rb") as file:  # noqa: ASYNC230, PTH123 - it waits for nothing
            async with connected() as (monitor, _):
                number = find_number(monitor)
                os.dup2(file.fileno(), number)
            os.close(number)  # fails if it was closed with the monitor

    run_virtual(main())
