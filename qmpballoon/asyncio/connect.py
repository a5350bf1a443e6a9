"""Opening a monitor and a balloon on asyncio, from an address or a client."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, overload

from qmpballoon._checks import require_kind, require_seconds
from qmpballoon._transport import sockets
from qmpballoon._transport.error_messages import name_errors
from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon._transport.own_monitor import change_to_own, require_own
from qmpballoon._transport.qemu_process import find_peer_pid, find_qemu_pid
from qmpballoon._transport.reconnection import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    AsyncReconnection,
    Backoff,
)
from qmpballoon._transport.sockets import OPEN_TIMEOUT
from qmpballoon.asyncio._streams import SocketTransport, TlsTransport, end_loser
from qmpballoon.asyncio.monitor import AsyncioMonitor
from qmpballoon.balloon.balloon import find_balloon as find_with_monitor
from qmpballoon.monitor import Monitor

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from qemu.qmp import QMPClient
    from typing_extensions import TypeIs

    from qmpballoon._transport.own_monitor import Own
    from qmpballoon._transport.sockets import Target
    from qmpballoon.address import TcpAddress
    from qmpballoon.asyncio.held_client import HeldClientMonitor
    from qmpballoon.balloon.balloon import Balloon

__all__ = ["find_balloon", "open_balloon", "open_monitor", "stay_connected"]

M = TypeVar("M", bound=Monitor)
T = TypeVar("T")

_log = logging.getLogger("qmpballoon.asyncio")


@asynccontextmanager
async def open_monitor(
    target: Target | QMPClient,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    oob: bool = False,
    own: Own = False,
    tls: ssl.SSLContext | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[AsyncioMonitor, None]:
    """Connect to a QMP monitor and negotiate; an asynchronous context manager.

    If the task is cancelled, at any moment, the connection is closed.

    Args:
        target: Where the monitor is: ``"/run/vm.qmp"``, ``"unix:PATH"``,
            ``"tcp:HOST:PORT"`` or ``(host, port)``; or a connected socket or its
            descriptor, which the monitor takes over. With ``own=True``, also a
            connected ``QMPClient`` of qemu.qmp, which is left as it is. While this is
            opened, send no descriptors of your own over it.
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
    deadline = asyncio.get_running_loop().time() + timeout
    if _is_client(target):
        if tls is not None:
            raise ValueError("a QMPClient has its own TLS: leave tls out")
        async with _open_over(
            target,
            own,
            deadline,
            name=name,
            command_timeout=command_timeout,
            oob=oob,
            wall_clock=wall_clock,
        ) as monitor:
            yield monitor
        return
    with name_errors(name):
        transport = await _connect(target, deadline, tls)
    monitor = AsyncioMonitor(
        transport,
        name=sockets.describe_target(target) if name is None else name,
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
    target: Target | QMPClient,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    own: Own = False,
    tls: ssl.SSLContext | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Balloon[AsyncioMonitor], None]:
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
        yield await find_with_monitor(monitor)


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
    return AsyncReconnection(opener, backoff, asyncio.sleep)


@overload
async def find_balloon(monitor: M, /) -> Balloon[M]: ...


@overload
async def find_balloon(
    client: QMPClient,
    /,
    *,
    name: str | None = None,
    command_timeout: float = COMMAND_TIMEOUT,
    pid: int | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Balloon[HeldClientMonitor]: ...


async def find_balloon(
    monitor: Monitor | QMPClient,
    /,
    *,
    name: str | None = None,
    command_timeout: float = COMMAND_TIMEOUT,
    pid: int | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Balloon:
    """Find the balloon of the VM behind a monitor, or behind your connected client.

    You may go on using the monitor or client, and you have to close it. Nothing in a
    client is replaced. Use :func:`adopt_client` to have a client disconnected properly
    at the end of a block. If the call is cancelled, it ends at once and has no effect.

    Args:
        monitor: A monitor, or a connected ``QMPClient`` of qemu.qmp. The other
            arguments are for a client.
        name: The name that messages use for the VM; by default that of the client.
        command_timeout: Seconds for each command of the balloon.
        pid: QEMU's process id, if you know it. By default it is found by the thread
            ids that QEMU reports. Give ``0`` if QEMU runs on *another* host.
        wall_clock: Returns seconds since the epoch, for the age of statistics.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorClosed: The client is not connected.
        MonitorTimeout: QEMU does not answer.
    """
    if isinstance(monitor, Monitor):
        return await find_with_monitor(monitor)
    # Imported here, because only a program that holds a client surely has qemu.qmp.
    from qmpballoon.asyncio.held_client import find_through_client  # noqa: PLC0415

    return await find_through_client(
        monitor,
        name=name,
        command_timeout=command_timeout,
        pid=pid,
        wall_clock=wall_clock,
    )


def _is_client(target: Target | QMPClient) -> TypeIs[QMPClient]:
    # A program that holds a client has loaded qemu.qmp; others may not even have it.
    module = sys.modules.get("qemu.qmp")
    return module is not None and isinstance(target, module.QMPClient)


@asynccontextmanager
async def _open_over(
    client: QMPClient,
    own: Own,
    deadline: float,
    *,
    name: str | None,
    command_timeout: float,
    oob: bool,
    wall_clock: Callable[[], float],
) -> AsyncGenerator[AsyncioMonitor, None]:
    """Have QEMU add a monitor over a client, and open it; as :func:`open_monitor`."""
    if own is not True:
        raise ValueError(
            "own has to be True for a QMPClient: find_balloon(client) shares it"
        )
    from qmpballoon.asyncio.held_client import add_through_client  # noqa: PLC0415

    name, added = await add_through_client(
        client, name=name, command_timeout=command_timeout, deadline=deadline
    )
    with added:
        async with open_monitor(
            added,
            name=name,
            timeout=max(deadline - asyncio.get_running_loop().time(), 0.0),
            command_timeout=command_timeout,
            oob=oob,
            wall_clock=wall_clock,
        ) as monitor:
            monitor.pid = await find_qemu_pid(monitor)
            yield monitor


async def _connect(
    target: Target, deadline: float, tls: ssl.SSLContext | None
) -> SocketTransport:
    """Connect to a monitor. If this fails or is cancelled, nothing is left open."""
    sock = await sockets.connect_socket(
        target,
        deadline,
        now=asyncio.get_running_loop().time,
        sleep=asyncio.sleep,
        connect_tcp=_connect_tcp,
    )
    pid = find_peer_pid(sock)
    if tls is None:
        return SocketTransport(sock, pid)
    return TlsTransport(await _shake_hands(sock, target, tls, deadline), pid)


async def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure = OSError("it has no address")
    try:
        async with asyncio.timeout_at(deadline):
            for family, kind, protocol, _, place in await loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM
            ):
                sock = sockets.set_nonblocking(socket.socket(family, kind, protocol))
                end_loser(sock)
                try:
                    # Otherwise a second command waits until the first is acknowledged.
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    await loop.sock_connect(sock, place)
                except OSError as error:
                    sock.close()
                    # The text of the number is clearer than asyncio's own message.
                    failure = OSError(error.errno, os.strerror(error.errno or 0))
                except BaseException:
                    sock.close()
                    raise
                else:
                    return sock
    except TimeoutError:
        raise sockets.make_tcp_timeout(address) from None
    except OSError as error:  # the host could not be looked up
        failure = error
    raise sockets.make_tcp_error(address, failure)


async def _shake_hands(
    sock: socket.socket, target: Target, tls: ssl.SSLContext, deadline: float
) -> ssl.SSLSocket:
    """Wrap a socket in TLS. If this fails or is cancelled, the socket is closed."""
    name, host_name = sockets.describe_target(target), sockets.find_host_name(target)
    end_loser(sock)
    secure = sock
    try:
        sockets.require_host_name(tls, host_name)
        secure = tls.wrap_socket(
            sock, server_hostname=host_name, do_handshake_on_connect=False
        )
        async with asyncio.timeout_at(deadline):
            while not await _advance_handshake(secure):
                pass
    except BaseException as error:
        secure.close()
        if isinstance(error, TimeoutError):
            raise sockets.make_tls_timeout(name) from None
        if isinstance(error, OSError):
            raise sockets.make_tls_error(name, error) from None
        raise
    return secure


async def _advance_handshake(secure: ssl.SSLSocket) -> bool:
    """Do what is possible of a TLS handshake, then wait; tell whether it is done."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    try:
        secure.do_handshake()
    except ssl.SSLWantReadError:
        loop.add_reader(secure, _resolve, ready)
    except ssl.SSLWantWriteError:
        loop.add_writer(secure, _resolve, ready)
    else:
        return True
    try:
        await ready
    finally:
        loop.remove_reader(secure)
        loop.remove_writer(secure)
    return False


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
