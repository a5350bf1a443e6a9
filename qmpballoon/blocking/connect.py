"""From an address to a monitor and a balloon, in plain calls."""

from __future__ import annotations

import math
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from qmpballoon._checks import require_seconds
from qmpballoon._transport import proc
from qmpballoon._transport.errors import closed_by_us
from qmpballoon._transport.sockets import (
    Connectable,
    checked,
    connect_unix,
    named,
    no_tcp,
    no_tcp_in_time,
    no_tls,
    no_tls_in_time,
    require_name,
    taken_over,
)
from qmpballoon.address import TcpAddress, UnixAddress, parse_address
from qmpballoon.blocking.balloon import BlockingBalloon, find_balloon, run
from qmpballoon.blocking.monitor import BlockingMonitor

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator


__all__ = [
    "COMMAND_TIMEOUT",
    "OPEN_TIMEOUT",
    "Target",
    "open_balloon",
    "open_monitor",
]

Target: TypeAlias = Connectable
"""An address, or something connected: a socket, or its descriptor. What is connected
is taken over, and closed at the end."""

OPEN_TIMEOUT: Final = 5.0
"""Seconds for connecting, greeting and negotiating, all together."""
COMMAND_TIMEOUT: Final = 10.0
"""Seconds for one command, waiting for its turn included."""


@contextmanager
def open_monitor(
    target: Target,
    *,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    tls: ssl.SSLContext | None = None,
) -> Generator[BlockingMonitor]:
    """Connect to a QMP monitor and negotiate; a context manager.

    Args:
        target: Where the monitor is: ``"/run/vm.qmp"``, ``"unix:PATH"``,
            ``"tcp:HOST:PORT"``, ``(host, port)``; or a connected socket or its
            descriptor, which are taken over.
        timeout: Seconds for connecting, greeting and negotiating together. Looking
            up a host's name has its own, the resolver's.
        command_timeout: Seconds for each command that gives none of its own.
        tls: Wrap the connection in TLS by this context.

    Yields:
        The monitor. Its connection is closed at the end of the block.

    Raises:
        MonitorUnreachable: Nobody could be connected to.
        MonitorBusy: Connected and not greeted: another client is served.
        MonitorTimeout: Greeted, and then left without an answer.
        MonitorClosed: The peer closed the connection.
        ProtocolError: The peer does not speak QMP.
    """
    require_seconds(timeout, "timeout")
    require_seconds(command_timeout, "command_timeout")
    deadline = time.monotonic() + timeout
    sock, pid = _connect(target, deadline, tls)
    name = named(target)
    monitor = BlockingMonitor(sock, name=name, pid=pid, command_timeout=command_timeout)
    try:
        monitor._start(deadline)  # noqa: SLF001
        yield monitor
    finally:
        monitor._shut(closed_by_us(name))  # noqa: SLF001
        sock.close()


@contextmanager
def open_balloon(
    target: Target,
    *,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    tls: ssl.SSLContext | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Generator[BlockingBalloon]:
    """Connect to a VM's monitor and find its balloon; a context manager.

    Args:
        target: As for :func:`open_monitor`.
        timeout: As for :func:`open_monitor`.
        command_timeout: As for :func:`open_monitor`.
        tls: As for :func:`open_monitor`.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Yields:
        The balloon. Its connection is closed at the end of the block.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: As :func:`open_monitor`.
    """
    with open_monitor(
        target, timeout=timeout, command_timeout=command_timeout, tls=tls
    ) as monitor:
        yield find_balloon(monitor, resident=monitor.resident, wall_clock=wall_clock)


def _connect(
    target: Target, deadline: float, tls: ssl.SSLContext | None
) -> tuple[socket.socket, int | None]:
    """Connect; return the socket, non-blocking, and QEMU's process id."""
    hostname = None
    if isinstance(target, int | socket.socket):
        sock = taken_over(target)
    else:
        address = parse_address(target)
        if isinstance(address, UnixAddress):
            sock = run(
                connect_unix(address, deadline, now=time.monotonic, sleep=_sleep)
            )
        else:
            hostname = address.host
            sock = checked(_connect_tcp(address, deadline))
    pid = proc.qemu_pid(sock)
    if tls is not None:
        sock = _secure(sock, hostname, tls, deadline, name=named(target))
    return sock, pid


async def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop


def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    left = max(deadline - time.monotonic(), 0.001)
    place = (address.host, address.port)
    try:
        return socket.create_connection(place, None if math.isinf(left) else left)
    except TimeoutError:
        raise no_tcp_in_time(address) from None
    except OSError as error:
        raise no_tcp(address, error) from None


def _secure(
    sock: socket.socket,
    hostname: str | None,
    tls: ssl.SSLContext,
    deadline: float,
    *,
    name: str,
) -> socket.socket:
    """Wrap a connected socket in TLS."""
    left = max(deadline - time.monotonic(), 0.001)
    sock.settimeout(None if math.isinf(left) else left)
    try:
        require_name(tls, hostname)
        secure = tls.wrap_socket(sock, server_hostname=hostname)
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise no_tls_in_time(name) from None
        if isinstance(error, OSError):
            raise no_tls(name, error) from None
        raise
    return checked(secure)
