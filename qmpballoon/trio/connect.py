"""Opening a monitor and a balloon from an address, on trio."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import trio

from qmpballoon._checks import require_kind, require_seconds
from qmpballoon._transport import sockets
from qmpballoon._transport.error_messages import name_errors
from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon._transport.own_monitor import change_to_own, require_own
from qmpballoon._transport.qemu_process import find_peer_pid
from qmpballoon._transport.reconnection import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    AsyncReconnection,
    Backoff,
)
from qmpballoon._transport.sockets import OPEN_TIMEOUT
from qmpballoon.balloon.balloon import find_balloon
from qmpballoon.trio._streams import SocketTransport, StreamTransport
from qmpballoon.trio.monitor import TrioMonitor

if TYPE_CHECKING:
    import random
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from qmpballoon._transport.own_monitor import Own
    from qmpballoon.address import TcpAddress
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.trio._streams import Transport

__all__ = ["Target", "open_balloon", "open_monitor", "stay_connected"]

T = TypeVar("T")

_log = logging.getLogger("qmpballoon.trio")

Target: TypeAlias = "sockets.Target | trio.abc.Stream"
"""An address, a connected socket, the descriptor of one, or a trio stream. The monitor
takes over what is connected, and closes it at the end. The object of a
socket that is given is closed at once; the connection goes on."""


@asynccontextmanager
@trio.lowlevel.enable_ki_protection  # what is connected is to be closed
async def open_monitor(
    target: Target,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    oob: bool = False,
    own: Own = False,
    tls: ssl.SSLContext | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[TrioMonitor, None]:
    """Connect to a QMP monitor and negotiate; an asynchronous context manager.

    If the task is cancelled, at any moment, the connection is closed.

    Args:
        target: Where the monitor is: ``"/run/vm.qmp"``, ``"unix:PATH"``,
            ``"tcp:HOST:PORT"`` or ``(host, port)``; or a connected socket, its
            descriptor or a :class:`trio.abc.Stream`, which the monitor takes over.
        name: What messages and errors call the VM; by default, they name the target.
        timeout: Seconds for connecting, greeting and negotiating together.
        command_timeout: Seconds for each command that gives none of its own.
        oob: Ask for out-of-band execution, if QEMU offers it.
        own: Whether to have QEMU add a monitor for this connection alone. The monitor
            at ``target`` is then left again within milliseconds. With ``True`` this
            must succeed; with ``"auto"`` the monitor at ``target`` is used if it does
            not. Needs QEMU 11.1 or later, on a unix socket.
        tls: Wrap the connection in TLS with this context.
        wall_clock: Returns seconds since the epoch, for the age of statistics.

    Yields:
        The monitor. Its connection is closed at the end of the block.

    Raises:
        MonitorUnreachable: No connection could be made.
        MonitorBusy: Connected, but not greeted: QEMU serves another client.
        MonitorTimeout: Greeted, but the negotiation was not answered.
        MonitorClosed: The peer closed the connection.
        OwnMonitorUnavailable: QEMU cannot add a monitor, and ``own`` is ``True``.
        ProtocolError: The peer does not speak QMP.
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or the target cannot be a monitor.
    """
    require_kind(name, str, "name")
    require_seconds(timeout, "timeout")
    require_seconds(command_timeout, "command_timeout")
    require_own(own)
    deadline = trio.current_time() + timeout
    with name_errors(name):
        transport = await _connect(target, deadline, tls)
    monitor = TrioMonitor(
        transport,
        name=describe_target(target) if name is None else name,
        command_timeout=command_timeout,
        wall_clock=wall_clock,
    )
    try:
        await monitor.start(deadline, oob=oob)
        monitor = await change_to_own(monitor, own, deadline, oob=oob, log=_log)
        yield monitor
    finally:
        await monitor.aclose()


@asynccontextmanager
async def open_balloon(
    target: Target,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    own: Own = False,
    tls: ssl.SSLContext | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Balloon[TrioMonitor], None]:
    """Connect to a VM's monitor and find its balloon; an asynchronous context manager.

    If the task is cancelled, at any moment, the connection is closed.

    Args:
        target: As for :func:`open_monitor`.
        name: As for :func:`open_monitor`.
        timeout: As for :func:`open_monitor`.
        command_timeout: As for :func:`open_monitor`.
        own: As for :func:`open_monitor`.
        tls: As for :func:`open_monitor`.
        wall_clock: As for :func:`open_monitor`.

    Yields:
        The balloon. Its connection is closed at the end of the block.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: As for :func:`open_monitor`.
    """
    async with open_monitor(
        target,
        name=name,
        timeout=timeout,
        command_timeout=command_timeout,
        own=own,
        tls=tls,
        wall_clock=wall_clock,
    ) as monitor:
        yield await find_balloon(monitor)


def stay_connected(
    opener: Callable[[], AbstractAsyncContextManager[T]],
    rng: random.Random,
    *,
    first_pause: float = FIRST_PAUSE,
    longest_pause: float = LONGEST_PAUSE,
) -> AsyncIterator[AbstractAsyncContextManager[T]]:
    """Connect to a VM again and again; an asynchronous iterator over connections.

    ::

        async for connection in stay_connected(
            lambda: open_balloon("/run/vm1.qmp"), random.Random()
        ):
            try:
                async with connection as balloon:
                    await balloon.keep()
            except MonitorError as error:
                print(error)

    Each item is a context manager, which opens a connection. The iteration holds
    nothing open and never ends on its own; the loop can be left at any moment.

    It waits before each attempt but the first: at most ``first_pause`` seconds after a
    connection that worked, and up to twice as long after each attempt that failed. An
    attempt has failed if the connection could not be opened, or if its block raised
    anything but a :exc:`~qmpballoon.errors.QmpBalloonError`.

    If the task is cancelled while it waits, the iteration can be continued.

    Args:
        opener: Opens what is wanted, such as :func:`open_balloon` or
            :func:`open_monitor` of one address.
        rng: Spreads the attempts of many programs: each pause is drawn between half of
            the length that is given here and all of it.
        first_pause: Seconds before the first attempt to connect again, at most.
        longest_pause: Seconds between two attempts, at most.

    Raises:
        TypeError: A pause is not a number.
        ValueError: A pause is negative.
    """
    backoff = Backoff(rng, first_pause, longest_pause)
    return AsyncReconnection(opener, backoff, trio.sleep)


def describe_target(target: Target) -> str:
    """Return the name that messages use for the monitor."""
    if isinstance(target, trio.abc.Stream):
        return "the connected monitor"
    return sockets.describe_target(target)


async def _connect(
    target: Target, deadline: float, tls: ssl.SSLContext | None
) -> Transport:
    """Connect to a monitor. If this fails or is cancelled, nothing stays open."""
    host_name, pid = None, None
    if isinstance(target, trio.abc.Stream):
        stream = target
    else:
        sock = await sockets.connect_socket(
            target,
            deadline,
            now=trio.current_time,
            sleep=trio.sleep,
            connect_tcp=_connect_tcp,
        )
        if tls is None:
            return SocketTransport(sock, find_peer_pid(sock))
        host_name, pid = sockets.find_host_name(target), find_peer_pid(sock)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    if tls is None:
        return StreamTransport(stream)
    name = describe_target(target)
    stream = await _shake_hands(stream, tls, host_name, deadline, name=name)
    return StreamTransport(stream, pid, sockets.TLS_TRAILER)


async def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    try:
        with trio.fail_at(deadline):
            stream = await trio.open_tcp_stream(address.host, address.port)
    except trio.TooSlowError:
        raise sockets.make_tcp_timeout(address) from None
    except (OSError, ValueError) as error:
        raise sockets.make_tcp_error(address, error) from None
    return socket.socket(fileno=stream.socket.detach())


async def _shake_hands(
    stream: trio.abc.Stream,
    tls: ssl.SSLContext,
    host_name: str | None,
    deadline: float,
    *,
    name: str,
) -> trio.abc.Stream:
    """Wrap a stream in TLS. If this fails or is cancelled, the stream is closed."""
    try:
        sockets.require_host_name(tls, host_name)
        secure = trio.SSLStream(
            stream,
            tls,
            server_hostname=host_name,
            # QEMU closes the connection without TLS's closing handshake.
            https_compatible=True,
        )
        with trio.fail_at(deadline):
            await secure.do_handshake()
    except BaseException as error:
        await StreamTransport(stream).aclose()
        if isinstance(error, trio.TooSlowError):
            raise sockets.make_tls_timeout(name) from None
        if isinstance(error, trio.BrokenResourceError):
            raise sockets.make_tls_error(name, error.__cause__ or error) from None
        raise
    return secure
