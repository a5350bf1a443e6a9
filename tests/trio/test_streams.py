"""Writing more than the kernel takes at once, and to peers that do not read."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from qmp_peers import GREETING, negotiated, stream_of
from trio.testing import wait_all_tasks_blocked

from qmpballoon.errors import MonitorClosed
from qmpballoon.qmp import Connection, Request, Return, Role
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import Generator


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@contextmanager
def narrow_pair() -> Generator[tuple[socket.socket, trio.SocketStream]]:
    """Yield a socket that takes little at once, and the other end of it."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ours, theirs:
        theirs.setblocking(False)  # noqa: FBT003
        yield ours, stream_of(theirs)


async def test_what_the_kernel_does_not_take_at_once_is_sent_later(
    nursery: trio.Nursery,
) -> None:
    big = {"a": "x" * 1_000_000}
    with narrow_pair() as (ours, theirs):
        nursery.start_soon(negotiated, theirs)
        async with open_monitor(ours) as monitor:
            # Two of them are cancelled with most of their bytes still here.
            for _ in range(2):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as callers:
                        callers.start_soon(monitor.execute, "echo", big)
                        await wait_all_tasks_blocked()
                        scope.cancel()
                assert scope.cancelled_caught
            nursery.start_soon(serve_on, theirs)
            assert await monitor.execute("echo", {"last": True}) == {"last": True}
            assert await monitor.execute("echo", big) == big


async def serve_on(stream: trio.SocketStream) -> None:
    """Serve whom :func:`negotiated` has left off with."""
    server = Connection(Role.SERVER)
    server.send_greeting(GREETING)
    try:
        while data := await stream.receive_some():
            server.receive_data(data)
            while (request := server.next_message()) is not None:
                assert isinstance(request, Request)
                reply = Return(dict(request.arguments), request.id)
                await stream.send_all(server.send_reply(reply))
    except trio.BrokenResourceError:
        pass


async def test_closing_does_not_wait_for_a_peer_that_does_not_read(
    nursery: trio.Nursery,
) -> None:
    with narrow_pair() as (ours, theirs):
        nursery.start_soon(negotiated, theirs)
        ended = trio.Event()
        async with open_monitor(ours) as monitor:

            async def send() -> None:
                with pytest.raises(MonitorClosed, match="by us"):
                    await monitor.execute("echo", {"a": "x" * 1_000_000})
                ended.set()

            nursery.start_soon(send)
            await wait_all_tasks_blocked()
        await ended.wait()


async def test_a_peer_that_dies_with_bytes_unsent_is_closed(
    nursery: trio.Nursery,
) -> None:
    with narrow_pair() as (ours, theirs):
        nursery.start_soon(negotiated, theirs)
        async with open_monitor(ours) as monitor:

            async def die() -> None:
                await wait_all_tasks_blocked()
                await theirs.aclose()

            nursery.start_soon(die)
            with pytest.raises(MonitorClosed) as caught:
                await monitor.execute("echo", {"a": "x" * 1_000_000})
            assert caught.value.unknown_outcome == ("echo",)
