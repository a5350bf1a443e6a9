"""asyncio on a virtual clock, and a scripted QEMU in the same event loop.

Both ends of a socket pair are in this process, so what was written can be read at once.
When nothing can be read, nothing will happen but by time: the clock jumps.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from qmpballoon.asyncio import AsyncioMonitor, open_monitor
from qmpballoon.qmp import (
    Connection,
    Event,
    Failure,
    Greeting,
    Request,
    Return,
    Role,
    Version,
)
from qmpballoon.testing.asyncio_world import JumpingLoop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

GREETING = Greeting(Version(10, 0, 2), ("oob",))
CHANGE = Event("BALLOON_CHANGE", {"actual": 1}, 1.5)


def run_virtual(main: Coroutine[Any, Any, object]) -> None:
    """Run a test on a virtual clock; no task and no timer may be left."""

    async def whole() -> None:
        await main
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        loop: Any = asyncio.get_running_loop()
        timers = [handle for handle in loop._scheduled if not handle.cancelled()]  # noqa: SLF001 - nobody else tells
        assert timers == []

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(whole())


async def settle() -> None:
    """Wait until nothing more happens unless time passes."""
    await asyncio.sleep(0.001)


def find_number(monitor: AsyncioMonitor) -> int:
    """Return a monitor's descriptor."""
    return monitor._transport._socket.fileno()  # noqa: SLF001 - nobody else tells


class Peer:
    """QEMU's end of the connection, doing what a test tells it to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.connection = Connection(Role.SERVER)
        self.received: list[Request] = []  # and not answered
        self.tasks: list[asyncio.Task[None]] = []  # they end when the client leaves

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, 4096)

    async def greet(self) -> None:
        await self.send(self.connection.send_greeting(GREETING))

    async def request(self) -> Request:
        """Return the next command; what was answered by :meth:`answer` is gone."""
        while (message := self.connection.next_message()) is None:
            data = await self.read()
            if not data:
                raise EOFError
            self.connection.receive_data(data)
        assert isinstance(message, Request)
        self.received.append(message)
        return message

    async def answer(self, request: Request, value: object = "yes") -> None:
        self.received.remove(request)
        await self.reply(Return(value, request.id))

    async def reply(self, reply: Return | Failure) -> None:
        await self.send(self.connection.send_reply(reply))

    async def tell(self, *events: Event) -> None:
        for event in events:
            await self.send(self.connection.send_event(event))

    async def negotiate(self) -> None:
        await self.greet()
        request = await self.request()
        assert request.command == "qmp_capabilities"
        await self.answer(request, {})

    def start_echo(self) -> None:
        """Start a task that runs :meth:`echo`."""
        self.tasks.append(asyncio.create_task(self.echo()))

    async def echo(self) -> None:
        """Answer each command with its own name, until the client leaves."""
        with suppress(EOFError, OSError):
            while True:
                request = await self.request()
                await self.answer(request, request.command)


@asynccontextmanager
async def connected(
    *,
    command_timeout: float = 10.0,
    oob: bool = False,
    narrow: bool = False,
    number: int | None = None,
) -> AsyncGenerator[tuple[AsyncioMonitor, Peer], None]:
    """Yield a monitor, negotiated, and its peer.

    Args:
        command_timeout: As for :func:`open_monitor`.
        oob: As for :func:`open_monitor`.
        narrow: Let the monitor's socket take little at once.
        number: The descriptor of the monitor's socket; what has it now is closed.
    """
    ours, theirs = socket.socketpair()
    if number is not None:
        with ours:
            os.dup2(ours.fileno(), number)
        ours = socket.socket(fileno=number)
    if narrow:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.setblocking(False)  # noqa: FBT003
    peer = Peer(theirs)
    with theirs:
        negotiation = asyncio.create_task(peer.negotiate())
        async with open_monitor(
            ours, command_timeout=command_timeout, oob=oob
        ) as monitor:
            await negotiation
            yield monitor, peer
        await asyncio.gather(*peer.tasks)
