"""From an address or a client to a monitor and a balloon, on asyncio."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from qemu.qmp import ConnectError, QMPClient, Runstate

from qmpballoon._checks import require_seconds
from qmpballoon._transport import proc
from qmpballoon._transport.asyncio_time import AsyncioTime
from qmpballoon._transport.errors import closed_by_peer, not_greeted, not_negotiated
from qmpballoon._transport.sockets import (
    Connectable,
    checked,
    connect_unix,
    named,
    no_tcp,
    no_tcp_in_time,
    taken_over,
)
from qmpballoon.address import TcpAddress, UnixAddress, parse_address
from qmpballoon.asyncio.monitor import (
    COMMAND_TIMEOUT,
    UNREAD_EVENTS,
    AsyncioMonitor,
    line,
)
from qmpballoon.asyncio.subscription import refuse
from qmpballoon.balloon import find
from qmpballoon.errors import MonitorClosed, ProtocolError, QmpBalloonError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from qmpballoon.balloon.balloon import Balloon

__all__ = ["OPEN_TIMEOUT", "Target", "find_balloon", "open_balloon", "open_monitor"]

# What qemu.qmp logs of a connection that we opened is raised as well.
_quiet = logging.getLogger(f"{__name__}.client")
_quiet.setLevel(logging.CRITICAL + 1)

Target: TypeAlias = Connectable
"""An address, or something connected: a socket, or its descriptor. What is connected
is taken over, and closed at the end."""

OPEN_TIMEOUT: Final = 5.0
"""Seconds for connecting, greeting and negotiating, all together."""

_CLOSE_TIMEOUT: Final = 1.0  # seconds


async def find_balloon(
    client: QMPClient,
    *,
    command_timeout: float = COMMAND_TIMEOUT,
    unread_events: int | None = UNREAD_EVENTS,
    pid: int | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Balloon:
    """Find the balloon of the VM behind a connected client, which stays yours.

    Args:
        client: Connected, and used by whomever else it pleases.
        command_timeout: Seconds for each of our commands.
        unread_events: How many events ``client.events`` may hold unread; further
            ones are dropped until somebody reads there. Without a bound, qemu.qmp
            keeps every event for ever. ``None`` leaves that as it is.
        pid: QEMU's process id, if you know it. Otherwise QEMU is asked for its
            threads: with a QEMU on *another* host, give ``0`` for none.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorClosed: The client is not connected.
        MonitorTimeout: QEMU does not answer.

    Cancellation: at once, with no effect.
    """
    monitor = AsyncioMonitor(
        client, command_timeout=command_timeout, unread_events=unread_events
    )
    monitor.pid = (await proc.find_qemu_pid(monitor) if pid is None else pid) or None
    return await find.find_balloon(
        monitor, resident=monitor.resident, wall_clock=wall_clock
    )


@asynccontextmanager
async def open_monitor(
    target: Target,
    *,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
) -> AsyncGenerator[AsyncioMonitor, None]:
    """Connect a client of our own and negotiate; an asynchronous context manager.

    For TLS, connect a ``QMPClient`` yourself.

    Args:
        target: Where the monitor is: ``"/run/vm.qmp"``, ``"unix:PATH"``,
            ``"tcp:HOST:PORT"``, ``(host, port)``; or a connected socket or its
            descriptor, which are taken over.
        timeout: Seconds for connecting, greeting and negotiating together.
        command_timeout: Seconds for each command that gives none of its own.

    Yields:
        The monitor. Its connection is closed at the end of the block.

    Raises:
        MonitorUnreachable: Nobody could be connected to.
        MonitorBusy: Connected and not greeted: another client is served.
        MonitorTimeout: Greeted, and then left without an answer.
        MonitorClosed: The peer closed the connection.
        ProtocolError: The peer does not speak QMP, or speaks it with
            ``pretty=on``, which qemu.qmp does not understand.

    Cancellation: at any moment; the connection is closed.
    """
    require_seconds(timeout, "timeout")
    require_seconds(command_timeout, "command_timeout")
    deadline = asyncio.get_running_loop().time() + timeout
    sock = await _connect(target, deadline)
    name, pid = named(target), proc.qemu_pid(sock)
    client = QMPClient()
    client.logger = _quiet
    client.events.event_filter = refuse  # nobody can read there
    try:
        await _greet(client, sock, name, pid, deadline)
        monitor = AsyncioMonitor(client, name=name, command_timeout=command_timeout)
        monitor.pid = pid
        yield monitor
    finally:
        await _disconnect(client, sock)


@asynccontextmanager
async def open_balloon(
    target: Target,
    *,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Balloon, None]:
    """Connect to a VM's monitor and find its balloon; a context manager.

    Args:
        target: As for :func:`open_monitor`.
        timeout: As for :func:`open_monitor`.
        command_timeout: As for :func:`open_monitor`.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Yields:
        The balloon. Its connection is closed at the end of the block.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: As :func:`open_monitor`.

    Cancellation: at any moment; the connection is closed.
    """
    async with open_monitor(
        target, timeout=timeout, command_timeout=command_timeout
    ) as monitor:
        yield await find.find_balloon(
            monitor, resident=monitor.resident, wall_clock=wall_clock
        )


async def _connect(target: Target, deadline: float) -> socket.socket:
    """Return a connected, non-blocking socket."""
    if isinstance(target, int | socket.socket):
        return taken_over(target)
    address = parse_address(target)
    if isinstance(address, UnixAddress):
        now = asyncio.get_running_loop().time
        return await connect_unix(address, deadline, now=now, sleep=asyncio.sleep)
    return await _connect_tcp(address, deadline)


async def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure = OSError("it has no address")
    try:
        async with asyncio.timeout_at(deadline):
            for family, kind, protocol, _, place in await loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM
            ):
                sock = checked(socket.socket(family, kind, protocol))
                try:
                    await loop.sock_connect(sock, place)
                except OSError as error:
                    sock.close()
                    # asyncio's own words for it are less clear.
                    failure = OSError(error.errno, os.strerror(error.errno or 0))
                except BaseException:
                    sock.close()
                    raise
                else:
                    return sock
    except TimeoutError:
        raise no_tcp_in_time(address) from None
    except OSError as error:  # of looking the host up
        failure = error
    raise no_tcp(address, failure)


async def _greet(
    client: QMPClient, sock: socket.socket, name: str, pid: int | None, deadline: float
) -> None:
    """Have the client greeted and negotiate."""
    try:
        async with asyncio.timeout_at(deadline):
            await client.connect(sock)
    except TimeoutError:
        busy = client.greeting is None
        raise (not_greeted(name, pid) if busy else not_negotiated(name)) from None
    except ConnectError as error:
        raise _why_not_connected(name, error.exc) from error


def _why_not_connected(name: str, cause: Exception) -> QmpBalloonError:
    match cause:
        case EOFError():
            return closed_by_peer(name)
        case OSError():
            return MonitorClosed(f"{name} broke: {cause}")
        case _:
            return ProtocolError(
                f"{name}: {line(cause)}: it is no QMP monitor, or one with pretty=on,"
                " which qemu.qmp cannot read"
            )


async def _disconnect(client: QMPClient, sock: socket.socket) -> None:
    """Close at once: qemu.qmp would wait for a peer that does not read.

    A cancellation waits for its end, or qemu.qmp would leave its tasks and the socket
    behind.
    """
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    clock = AsyncioTime()
    try:
        with clock.shield(math.inf):
            await clock.wait(asyncio.create_task(_end(client)), math.inf)
    finally:
        sock.close()


async def _end(client: QMPClient) -> None:
    if client.runstate is not Runstate.IDLE:
        # It raises again whatever ended the connection.
        with suppress(Exception):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await client.disconnect()
