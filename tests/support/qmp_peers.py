"""Peers that speak QMP on real sockets, and a client that tries them."""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import trio

from qmpballoon.qmp import Connection, Greeting, Request, Return, Role, Version
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from qmpballoon.trio import Target

GREETING = Greeting(Version(10, 0, 2), ("oob",))


async def serve(stream: trio.abc.Stream) -> None:
    """Speak QMP: each command's answer is its arguments."""
    server = Connection(Role.SERVER)
    async with stream:
        try:
            await stream.send_all(server.send_greeting(GREETING))
            while data := await stream.receive_some():
                server.receive_data(data)
                while (request := server.next_message()) is not None:
                    assert isinstance(request, Request)
                    reply = Return(dict(request.arguments), request.id)
                    await stream.send_all(server.send_reply(reply))
        except trio.BrokenResourceError:
            pass  # the client has left


async def negotiated(peer: trio.abc.Stream) -> None:
    """Do QEMU's part until commands may come, and then read nothing."""
    server = Connection(Role.SERVER)
    await peer.send_all(server.send_greeting(GREETING))
    server.receive_data(await peer.receive_some())
    request = server.next_message()
    assert isinstance(request, Request)
    await peer.send_all(server.send_reply(Return({}, request.id)))


async def speaks_qmp(target: Target, *, tls: ssl.SSLContext | None = None) -> None:
    """Fail unless a monitor can be opened there."""
    async with open_monitor(target, tls=tls) as monitor:
        assert monitor.greeting == GREETING
        assert await monitor.execute("echo", {"a": "é"}) == {"a": "é"}


@asynccontextmanager
async def serving(
    listener: trio.SocketListener | trio.SSLListener[trio.SocketStream],
) -> AsyncGenerator[None, None]:
    """Serve whoever connects, until the block ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield
        nursery.cancel_scope.cancel()


@contextmanager
def unix_listener(path: Path, backlog: int = 8) -> Generator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path))
        sock.listen(backlog)
        sock.setblocking(False)  # noqa: FBT003
        yield sock


def trio_listener(sock: socket.socket) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))


def stream_of(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
