"""Opening a monitor and a balloon from an address or a client, on asyncio."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from qemu.qmp import ConnectError, QMPClient, Runstate

from qmpballoon._checks import require_seconds
from qmpballoon._transport.asyncio_clock import AsyncioClock
from qmpballoon._transport.error_messages import (
    make_closed_by_qemu,
    make_negotiation_timeout,
    make_no_greeting,
)
from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon._transport.qemu_process import find_peer_pid, find_qemu_pid
from qmpballoon._transport.sockets import (
    OPEN_TIMEOUT,
    connect_socket,
    describe_target,
    make_tcp_error,
    make_tcp_timeout,
    set_nonblocking,
)
from qmpballoon.asyncio.monitor import (
    UNREAD_EVENTS,
    AsyncioMonitor,
    drop_event,
    get_first_line,
)
from qmpballoon.balloon.balloon import find_balloon as find_with_monitor
from qmpballoon.errors import MonitorClosed, ProtocolError, QmpBalloonError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from qmpballoon._transport.sockets import Target
    from qmpballoon.address import TcpAddress
    from qmpballoon.balloon.balloon import Balloon

__all__ = ["find_balloon", "open_balloon", "open_monitor"]

# For a client of our own. What qemu.qmp logs about its connection is raised as well.
_silent_log = logging.getLogger(f"{__name__}.client")
_silent_log.setLevel(logging.CRITICAL + 1)

# Seconds. Chosen: the socket is shut down already, so the client's tasks end at once.
_CLOSE_TIMEOUT: Final = 1.0


async def find_balloon(
    client: QMPClient,
    *,
    command_timeout: float = COMMAND_TIMEOUT,
    unread_events: int | None = UNREAD_EVENTS,
    pid: int | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Balloon[AsyncioMonitor]:
    """Find the balloon of the VM behind your connected client.

    You may go on using the client, and you close it. If the call is cancelled, it ends
    at once and has no effect.

    Args:
        client: The client.
        command_timeout: Seconds for each command of the balloon.
        unread_events: How many unread events ``client.events`` may hold. Further ones
            are dropped until they are read. Without a limit, qemu.qmp keeps every
            event for ever. ``None`` sets no limit.
        pid: QEMU's process id, if you know it. By default QEMU is asked for its
            threads. Give ``0`` if QEMU runs on *another* host.
        wall_clock: Returns seconds since the epoch, for the age of statistics.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorClosed: The client is not connected.
        MonitorTimeout: QEMU does not answer.
    """
    monitor = AsyncioMonitor(
        client,
        command_timeout=command_timeout,
        wall_clock=wall_clock,
        unread_events=unread_events,
    )
    monitor.pid = (await find_qemu_pid(monitor) if pid is None else pid) or None
    return await find_with_monitor(monitor)


@asynccontextmanager
async def open_monitor(
    target: Target,
    *,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[AsyncioMonitor, None]:
    """Connect to a QMP monitor and negotiate; an asynchronous context manager.

    It connects a ``QMPClient`` of its own, without TLS. For TLS, connect a client
    yourself and call :func:`find_balloon`. If the task is cancelled, at any moment, the
    connection is closed.

    Args:
        target: Where the monitor is: ``"/run/vm.qmp"``, ``"unix:PATH"``,
            ``"tcp:HOST:PORT"`` or ``(host, port)``; or a connected socket or its
            descriptor, which the monitor takes over.
        timeout: Seconds for connecting, greeting and negotiating together.
        command_timeout: Seconds for each command that gives none of its own.
        wall_clock: Returns seconds since the epoch, for the age of statistics.

    Yields:
        The monitor. Its connection is closed at the end of the block.

    Raises:
        MonitorUnreachable: No connection could be made.
        MonitorBusy: Connected, but not greeted: QEMU serves another client.
        MonitorTimeout: Greeted, but the negotiation was not answered.
        MonitorClosed: The peer closed the connection.
        ProtocolError: The peer does not speak QMP, or speaks it with ``pretty=on``,
            which qemu.qmp does not understand.
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or the target cannot be a monitor.
    """
    require_seconds(timeout, "timeout")
    require_seconds(command_timeout, "command_timeout")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    sock = await connect_socket(
        target,
        deadline,
        now=loop.time,
        sleep=asyncio.sleep,
        connect_tcp=_connect_tcp,
    )
    name, pid = describe_target(target), find_peer_pid(sock)
    client = QMPClient()
    client.logger = _silent_log
    client.events.event_filter = drop_event  # nobody can read client.events
    try:
        await _greet(client, sock, name, pid, deadline)
        monitor = AsyncioMonitor(
            client, name=name, command_timeout=command_timeout, wall_clock=wall_clock
        )
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
) -> AsyncGenerator[Balloon[AsyncioMonitor], None]:
    """Connect to a VM's monitor and find its balloon; an asynchronous context manager.

    If the task is cancelled, at any moment, the connection is closed.

    Args:
        target: As for :func:`open_monitor`.
        timeout: As for :func:`open_monitor`.
        command_timeout: As for :func:`open_monitor`.
        wall_clock: Returns seconds since the epoch, for the age of statistics.

    Yields:
        The balloon. Its connection is closed at the end of the block.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: As for :func:`open_monitor`.
    """
    async with open_monitor(
        target,
        timeout=timeout,
        command_timeout=command_timeout,
        wall_clock=wall_clock,
    ) as monitor:
        yield await find_with_monitor(monitor)


async def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure: OSError | ValueError = OSError("it has no address")
    try:
        async with asyncio.timeout_at(deadline):
            for family, kind, protocol, _, place in await loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM
            ):
                sock = set_nonblocking(socket.socket(family, kind, protocol))
                try:
                    await loop.sock_connect(sock, place)
                except OSError as error:
                    sock.close()
                    # Its number's text is clearer than asyncio's own message.
                    failure = OSError(error.errno, os.strerror(error.errno or 0))
                except BaseException:
                    sock.close()
                    raise
                else:
                    return sock
    except TimeoutError:
        raise make_tcp_timeout(address) from None
    except (OSError, ValueError) as error:  # the host could not be looked up
        failure = error
    raise make_tcp_error(address, failure)


async def _greet(
    client: QMPClient, sock: socket.socket, name: str, pid: int | None, deadline: float
) -> None:
    """Wait for the greeting and negotiate."""
    try:
        async with asyncio.timeout_at(deadline):
            await client.connect(sock)
    except TimeoutError:
        if client.greeting is None:
            raise make_no_greeting(name, pid) from None
        raise make_negotiation_timeout(name) from None
    except ConnectError as error:
        raise _translate_connect_error(name, error.exc) from error


def _translate_connect_error(name: str, cause: Exception) -> QmpBalloonError:
    match cause:
        case EOFError():
            return make_closed_by_qemu(name)
        case OSError():
            return MonitorClosed(f"{name} broke: {cause}")
        case _:
            return ProtocolError(
                f"{name}: {get_first_line(cause)}: it is no QMP monitor, or one with"
                " pretty=on, which qemu.qmp cannot read"
            )


async def _disconnect(client: QMPClient, sock: socket.socket) -> None:
    """Close the connection at once: qemu.qmp would wait for a peer that does not read.

    A cancellation is held back until this is done. Otherwise qemu.qmp would leave its
    tasks and the socket behind.
    """
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    clock = AsyncioClock()
    try:
        with clock.shield(math.inf):
            await clock.wait(asyncio.create_task(_end(client)), math.inf)
    finally:
        sock.close()


async def _end(client: QMPClient) -> None:
    if client.runstate is not Runstate.IDLE:
        # It raises the error that ended the connection once more.
        with suppress(Exception):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await client.disconnect()
