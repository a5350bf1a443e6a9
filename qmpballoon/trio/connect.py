"""From an address to a monitor and a balloon, on trio."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from qmpballoon._checks import require_seconds
from qmpballoon._transport.errors import closed_by_us
from qmpballoon.balloon.find import find_balloon
from qmpballoon.trio._background import Background
from qmpballoon.trio._transport import Target, connect, describe
from qmpballoon.trio.monitor import TrioMonitor

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable

    from qmpballoon.balloon.balloon import Balloon

__all__ = ["COMMAND_TIMEOUT", "OPEN_TIMEOUT", "open_balloon", "open_monitor"]

OPEN_TIMEOUT: Final = 5.0
"""Seconds for connecting, greeting and negotiating, all together."""
COMMAND_TIMEOUT: Final = 10.0
"""Seconds for one command, waiting for its turn included."""


@asynccontextmanager
async def open_monitor(
    target: Target,
    *,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    oob: bool = False,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[TrioMonitor, None]:
    """Connect to a QMP monitor and negotiate; an asynchronous context manager.

    Args:
        target: Where the monitor is: ``"/run/vm.qmp"``, ``"unix:PATH"``,
            ``"tcp:HOST:PORT"``, ``(host, port)``; or a connected socket, its
            descriptor or a :class:`trio.abc.Stream`, which are taken over.
        timeout: Seconds for connecting, greeting and negotiating together.
        command_timeout: Seconds for each command that gives none of its own.
        oob: Ask for out-of-band execution, if QEMU offers it.
        tls: Wrap the connection in TLS by this context.

    Yields:
        The monitor. Its connection is closed at the end of the block.

    Raises:
        MonitorUnreachable: Nobody could be connected to.
        MonitorBusy: Connected and not greeted: another client is served.
        MonitorTimeout: Greeted, and then left without an answer.
        MonitorClosed: The peer closed the connection.
        ProtocolError: The peer does not speak QMP.

    Cancellation: at any moment; the connection is closed.
    """
    require_seconds(timeout, "timeout")
    require_seconds(command_timeout, "command_timeout")
    deadline = trio.current_time() + timeout
    transport = await connect(target, deadline=deadline, tls=tls)
    name = describe(target)
    monitor = TrioMonitor(transport, name=name, command_timeout=command_timeout)
    try:
        async with Background() as background:
            try:
                await monitor._start(background, deadline, oob=oob)  # noqa: SLF001
                yield monitor
            finally:
                # Before the background ends, so that nobody starts anything there.
                monitor._shut(closed_by_us(name))  # noqa: SLF001
    finally:
        await transport.aclose()


@asynccontextmanager
async def open_balloon(
    target: Target,
    *,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    tls: ssl.SSLContext | None = None,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Balloon, None]:
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

    Cancellation: at any moment; the connection is closed.
    """
    async with open_monitor(
        target, timeout=timeout, command_timeout=command_timeout, tls=tls
    ) as monitor:
        yield await find_balloon(
            monitor, resident=monitor.resident, wall_clock=wall_clock
        )
