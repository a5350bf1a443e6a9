"""Opening a monitor and a balloon from an address, in blocking code."""

from __future__ import annotations

import functools
import logging
import math
import socket
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from qmpballoon._checks import require_kind, require_seconds
from qmpballoon._transport import sockets
from qmpballoon._transport.error_messages import name_errors
from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon._transport.own_monitor import (
    SharedAdapter,
    require_own,
    try_own_monitor,
)
from qmpballoon._transport.qemu_process import find_peer_pid
from qmpballoon._transport.reconnection import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Backoff,
    BlockingReconnection,
)
from qmpballoon._transport.sockets import OPEN_TIMEOUT
from qmpballoon.blocking.balloon import BlockingBalloon, find_balloon, run_sync
from qmpballoon.blocking.monitor import BlockingMonitor

if TYPE_CHECKING:
    import random
    import ssl
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager

    from qmpballoon._transport.own_monitor import Own
    from qmpballoon._transport.sockets import Target
    from qmpballoon.address import TcpAddress

__all__ = ["open_balloon", "open_monitor", "stay_connected"]

T = TypeVar("T")

_log = logging.getLogger("qmpballoon.blocking")


@contextmanager
def open_monitor(
    target: Target,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    own: Own = False,
    tls: ssl.SSLContext | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Generator[BlockingMonitor]:
    """Connect to a QMP monitor and negotiate; a context manager.

    Args:
        target: Where the monitor is: ``"/run/vm.qmp"``, ``"unix:PATH"``,
            ``"tcp:HOST:PORT"`` or ``(host, port)``; or a connected socket or its
            descriptor, which the monitor takes over.
        name: What messages and errors call the VM; by default, they name the target.
        timeout: Seconds for connecting, greeting and negotiating together. Looking up
            a host's name takes as long as the resolver's own timeout allows.
        command_timeout: Seconds for each command that gives none of its own.
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
    deadline = time.monotonic() + timeout
    with name_errors(name):
        sock, pid = _connect(target, deadline, tls)
    make = functools.partial(
        BlockingMonitor,
        name=sockets.describe_target(target) if name is None else name,
        pid=pid,  # of a socket pair, the kernel names us as the peer
        command_timeout=command_timeout,
        wall_clock=wall_clock,
    )
    shared = make(sock, trailer=sockets.TLS_TRAILER if tls else b"")
    with ExitStack() as closing:
        with shared.run(deadline):
            added = run_sync(
                try_own_monitor(SharedAdapter(shared), own, deadline, _log)
            )
            if added is None:
                yield shared
                return
            closing.enter_context(added)
        monitor = make(added)
        with monitor.run(deadline):
            yield monitor


@contextmanager
def open_balloon(
    target: Target,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    own: Own = False,
    tls: ssl.SSLContext | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> Generator[BlockingBalloon[BlockingMonitor]]:
    """Connect to a VM's monitor and find its balloon; a context manager.

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
    with open_monitor(
        target,
        name=name,
        timeout=timeout,
        command_timeout=command_timeout,
        own=own,
        tls=tls,
        wall_clock=wall_clock,
    ) as monitor:
        yield find_balloon(monitor)


def stay_connected(
    opener: Callable[[], AbstractContextManager[T]],
    rng: random.Random,
    *,
    first_pause: float = FIRST_PAUSE,
    longest_pause: float = LONGEST_PAUSE,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[AbstractContextManager[T]]:
    """Connect to a VM again and again; an iterator over connections.

    ::

        for connection in stay_connected(
            lambda: open_balloon("/run/vm1.qmp"), random.Random()
        ):
            try:
                with connection as balloon:
                    balloon.keep()
            except MonitorError as error:
                print(error)

    Each item is a context manager, which opens a connection. The iteration holds
    nothing open and never ends on its own; the loop can be left at any moment.

    It waits before each attempt but the first: at most ``first_pause`` seconds after a
    connection that worked, and up to twice as long after each attempt that failed. An
    attempt has failed if the connection could not be opened, or if its block raised
    anything but a :exc:`~qmpballoon.errors.QmpBalloonError`.

    Args:
        opener: Opens what is wanted, such as :func:`open_balloon` or
            :func:`open_monitor` of one address.
        rng: Spreads the attempts of many programs: each pause is drawn between half of
            the length that is given here and all of it.
        first_pause: Seconds before the first attempt to connect again, at most.
        longest_pause: Seconds between two attempts, at most.
        sleep: Waits for so many seconds, or until another thread ends the wait: give
            the ``wait`` of a :class:`threading.Event` that says when to stop, and look
            at the event before each attempt.

    Raises:
        TypeError: A pause is not a number.
        ValueError: A pause is negative.
    """
    backoff = Backoff(rng, first_pause, longest_pause)
    return BlockingReconnection(opener, backoff, sleep)


def _connect(
    target: Target, deadline: float, tls: ssl.SSLContext | None
) -> tuple[socket.socket, int | None]:
    """Connect; return the non-blocking socket and QEMU's process id."""
    sock = run_sync(
        sockets.connect_socket(
            target,
            deadline,
            now=time.monotonic,
            sleep=_sleep,
            connect_tcp=_connect_tcp,
        )
    )
    pid = find_peer_pid(sock)
    if tls is not None:
        sock = _shake_hands(sock, target, tls, deadline)
    return sock, pid


async def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop


async def _connect_tcp(address: TcpAddress, deadline: float) -> socket.socket:
    place = (address.host, address.port)
    try:
        return socket.create_connection(place, _get_time_left(deadline))
    except TimeoutError:
        raise sockets.make_tcp_timeout(address) from None
    except (OSError, ValueError) as error:
        raise sockets.make_tcp_error(address, error) from None


def _shake_hands(
    sock: socket.socket, target: Target, tls: ssl.SSLContext, deadline: float
) -> socket.socket:
    """Wrap a connected socket in TLS. If this fails, the socket is closed."""
    name, host_name = sockets.describe_target(target), sockets.find_host_name(target)
    sock.settimeout(_get_time_left(deadline))
    try:
        sockets.require_host_name(tls, host_name)
        secure = tls.wrap_socket(sock, server_hostname=host_name)
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise sockets.make_tls_timeout(name) from None
        if isinstance(error, OSError):
            raise sockets.make_tls_error(name, error) from None
        raise
    return sockets.set_nonblocking(secure)


def _get_time_left(deadline: float) -> float | None:
    """Return the seconds until a deadline, for a socket; ``None`` if it has no end."""
    # Not zero: to a socket that means non-blocking.
    left = max(deadline - time.monotonic(), 0.001)
    return None if math.isinf(left) else left
