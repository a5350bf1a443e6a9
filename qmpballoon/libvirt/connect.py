"""The balloon of a domain: in blocking code, on asyncio and on trio.

``find_balloon`` reaches it through libvirt's passthrough. ``open_balloon`` has QEMU add
a monitor, and connects to that.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from qmpballoon._checks import require_seconds
from qmpballoon._transport import qemu_process
from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon._transport.own_monitor import (
    SharedAdapter,
    add_own_monitor,
    get_time_left,
)
from qmpballoon._transport.sockets import OPEN_TIMEOUT
from qmpballoon.balloon.balloon import find_balloon as find_with_monitor
from qmpballoon.blocking import balloon
from qmpballoon.blocking import connect as blocking
from qmpballoon.libvirt.monitor import (
    AsyncioLibvirtMonitor,
    LibvirtMonitor,
    TrioLibvirtMonitor,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from contextlib import AbstractAsyncContextManager

    from qmpballoon.asyncio.monitor import AsyncioMonitor
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.blocking.monitor import BlockingMonitor
    from qmpballoon.libvirt.domain import Domain
    from qmpballoon.monitor import Monitor
    from qmpballoon.trio.monitor import TrioMonitor

__all__ = [
    "find_balloon",
    "find_balloon_asyncio",
    "find_balloon_trio",
    "find_pid",
    "open_balloon",
    "open_balloon_asyncio",
    "open_balloon_trio",
    "open_monitor",
    "open_monitor_asyncio",
    "open_monitor_trio",
]

_Opened = TypeVar("_Opened", bound="AsyncioMonitor | TrioMonitor")


def find_balloon(
    domain: Domain,
    *,
    name: str | None = None,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> balloon.BlockingBalloon[LibvirtMonitor]:
    """Find the balloon of a running domain, for blocking code.

    Args:
        domain: A ``libvirt.virDomain`` of the QEMU driver, on a connection that is not
            read-only.
        name: What messages and errors call the VM; by default, they use its name in
            libvirt.
        command_timeout: Seconds for each command.
        wall_clock: Returns seconds since the epoch, for the age of statistics.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorClosed: The domain does not run.
        MonitorUnreachable: libvirt does not let you pass commands on.
        MonitorTimeout: QEMU or libvirt does not answer.
        ImportError: libvirt-python is not installed.
    """
    monitor = LibvirtMonitor(
        domain, name=name, command_timeout=command_timeout, wall_clock=wall_clock
    )
    monitor.pid = balloon.run_sync(
        find_pid(domain, balloon.SyncMonitorAdapter(monitor))
    )
    return balloon.find_balloon(monitor)


async def find_balloon_asyncio(
    domain: Domain,
    *,
    name: str | None = None,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> Balloon[AsyncioLibvirtMonitor]:
    """Find the balloon of a running domain, on asyncio.

    If the call is cancelled, it ends at once and has no effect.

    Args:
        domain: As for :func:`find_balloon`.
        name: As for :func:`find_balloon`.
        command_timeout: As for :func:`find_balloon`.
        wall_clock: As for :func:`find_balloon`.

    Raises:
        QmpBalloonError: As for :func:`find_balloon`.
        ImportError: libvirt-python is not installed.
    """
    monitor = AsyncioLibvirtMonitor(
        domain, name=name, command_timeout=command_timeout, wall_clock=wall_clock
    )
    monitor.pid = await find_pid(domain, monitor)
    return await find_with_monitor(monitor)


async def find_balloon_trio(
    domain: Domain,
    *,
    name: str | None = None,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> Balloon[TrioLibvirtMonitor]:
    """Find the balloon of a running domain, on trio.

    If the call is cancelled, it ends at once and has no effect.

    Args:
        domain: As for :func:`find_balloon`.
        name: As for :func:`find_balloon`.
        command_timeout: As for :func:`find_balloon`.
        wall_clock: As for :func:`find_balloon`.

    Raises:
        QmpBalloonError: As for :func:`find_balloon`.
        ImportError: libvirt-python is not installed.
    """
    monitor = TrioLibvirtMonitor(
        domain, name=name, command_timeout=command_timeout, wall_clock=wall_clock
    )
    monitor.pid = await find_pid(domain, monitor)
    return await find_with_monitor(monitor)


@contextmanager
def open_monitor(
    domain: Domain,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> Generator[BlockingMonitor]:
    """Have QEMU add a monitor, and connect to it, in blocking code.

    A context manager. libvirt hands one end of the connection to QEMU, and is not used
    after that. Unlike libvirt's passthrough, such a monitor has events, and it takes
    less time for a command. libvirt does not know of it. The monitor vanishes from QEMU
    when its connection is closed.

    Args:
        domain: A ``libvirt.virDomain`` of the QEMU driver, on a connection to a libvirt
            of this host, 8.2 or later, that is not read-only.
        name: What messages and errors call the VM; by default, they use its name in
            libvirt.
        timeout: Seconds for adding the monitor and connecting to it.
        command_timeout: Seconds for each command that gives none of its own.
        wall_clock: Returns seconds since the epoch, for the age of statistics.

    Yields:
        The monitor. Its connection is closed at the end of the block.

    Raises:
        OwnMonitorUnavailable: QEMU cannot add a monitor, for example because it is
            older than 11.1; or libvirt cannot pass descriptors. Nothing was changed.
        MonitorClosed: The domain does not run.
        MonitorUnreachable: libvirt does not let you pass commands on.
        MonitorTimeout: QEMU or libvirt does not answer.
        ImportError: libvirt-python is not installed.
    """
    require_seconds(timeout, "timeout")
    shared = LibvirtMonitor(domain, name=name, command_timeout=command_timeout)
    deadline = shared.now() + timeout
    with (
        balloon.run_sync(add_own_monitor(SharedAdapter(shared), deadline)) as added,
        blocking.open_monitor(
            added,
            name=shared.name,
            timeout=get_time_left(shared, deadline),
            command_timeout=command_timeout,
            wall_clock=wall_clock,
        ) as monitor,
    ):
        adapter = balloon.SyncMonitorAdapter(monitor)
        monitor.pid = balloon.run_sync(find_pid(domain, adapter))
        yield monitor


@contextmanager
def open_balloon(
    domain: Domain,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> Generator[balloon.BlockingBalloon[BlockingMonitor]]:
    """Have QEMU add a monitor, and find the balloon with it, in blocking code.

    A context manager. As :func:`open_monitor`.

    Args:
        domain: As for :func:`open_monitor`.
        name: As for :func:`open_monitor`.
        timeout: As for :func:`open_monitor`.
        command_timeout: As for :func:`open_monitor`.
        wall_clock: As for :func:`open_monitor`.

    Yields:
        The balloon. Its connection is closed at the end of the block.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: As for :func:`open_monitor`.
        ImportError: libvirt-python is not installed.
    """
    with open_monitor(
        domain,
        name=name,
        timeout=timeout,
        command_timeout=command_timeout,
        wall_clock=wall_clock,
    ) as monitor:
        yield balloon.find_balloon(monitor)


@asynccontextmanager
async def open_monitor_asyncio(
    domain: Domain,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[AsyncioMonitor, None]:
    """Have QEMU add a monitor, and connect to it, on asyncio.

    An asynchronous context manager. As :func:`open_monitor`. If the task is cancelled,
    at any moment, nothing stays in QEMU.

    Args:
        domain: As for :func:`open_monitor`.
        name: As for :func:`open_monitor`.
        timeout: As for :func:`open_monitor`.
        command_timeout: As for :func:`open_monitor`.
        wall_clock: As for :func:`open_monitor`.

    Yields:
        The monitor. Its connection is closed at the end of the block.

    Raises:
        OwnMonitorUnavailable: As for :func:`open_monitor`.
        MonitorClosed: As for :func:`open_monitor`.
        MonitorUnreachable: As for :func:`open_monitor`.
        MonitorTimeout: As for :func:`open_monitor`.
        ImportError: libvirt-python is not installed.
    """
    # Programs on another event loop do without this one.
    from qmpballoon.asyncio import connect  # noqa: PLC0415

    require_seconds(timeout, "timeout")
    shared = AsyncioLibvirtMonitor(domain, name=name, command_timeout=command_timeout)
    opener = partial(
        connect.open_monitor, command_timeout=command_timeout, wall_clock=wall_clock
    )
    async with _open_added(domain, shared, opener, timeout) as monitor:
        yield monitor


@asynccontextmanager
async def open_balloon_asyncio(
    domain: Domain,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Balloon[AsyncioMonitor], None]:
    """Have QEMU add a monitor, and find the balloon with it, on asyncio.

    An asynchronous context manager. As :func:`open_monitor_asyncio`.

    If the task is cancelled, at any moment, nothing stays in QEMU.

    Args:
        domain: As for :func:`open_monitor_asyncio`.
        name: As for :func:`open_monitor_asyncio`.
        timeout: As for :func:`open_monitor_asyncio`.
        command_timeout: As for :func:`open_monitor_asyncio`.
        wall_clock: As for :func:`open_monitor_asyncio`.

    Yields:
        The balloon. Its connection is closed at the end of the block.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: As for :func:`open_monitor_asyncio`.
        ImportError: libvirt-python is not installed.
    """
    async with open_monitor_asyncio(
        domain,
        name=name,
        timeout=timeout,
        command_timeout=command_timeout,
        wall_clock=wall_clock,
    ) as monitor:
        yield await find_with_monitor(monitor)


@asynccontextmanager
async def open_monitor_trio(
    domain: Domain,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[TrioMonitor, None]:
    """Have QEMU add a monitor, and connect to it, on trio.

    An asynchronous context manager. As :func:`open_monitor`. If the task is cancelled,
    at any moment, nothing stays in QEMU.

    Args:
        domain: As for :func:`open_monitor`.
        name: As for :func:`open_monitor`.
        timeout: As for :func:`open_monitor`.
        command_timeout: As for :func:`open_monitor`.
        wall_clock: As for :func:`open_monitor`.

    Yields:
        The monitor. Its connection is closed at the end of the block.

    Raises:
        OwnMonitorUnavailable: As for :func:`open_monitor`.
        MonitorClosed: As for :func:`open_monitor`.
        MonitorUnreachable: As for :func:`open_monitor`.
        MonitorTimeout: As for :func:`open_monitor`.
        ImportError: libvirt-python is not installed.
    """
    # Programs on another event loop do without this one.
    from qmpballoon.trio import connect  # noqa: PLC0415

    require_seconds(timeout, "timeout")
    shared = TrioLibvirtMonitor(domain, name=name, command_timeout=command_timeout)
    opener = partial(
        connect.open_monitor, command_timeout=command_timeout, wall_clock=wall_clock
    )
    async with _open_added(domain, shared, opener, timeout) as monitor:
        yield monitor


@asynccontextmanager
async def open_balloon_trio(
    domain: Domain,
    *,
    name: str | None = None,
    timeout: float = OPEN_TIMEOUT,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Balloon[TrioMonitor], None]:
    """Have QEMU add a monitor, and find the balloon with it, on trio.

    An asynchronous context manager. As :func:`open_monitor_trio`.

    If the task is cancelled, at any moment, nothing stays in QEMU.

    Args:
        domain: As for :func:`open_monitor_trio`.
        name: As for :func:`open_monitor_trio`.
        timeout: As for :func:`open_monitor_trio`.
        command_timeout: As for :func:`open_monitor_trio`.
        wall_clock: As for :func:`open_monitor_trio`.

    Yields:
        The balloon. Its connection is closed at the end of the block.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorError: As for :func:`open_monitor_trio`.
        ImportError: libvirt-python is not installed.
    """
    async with open_monitor_trio(
        domain,
        name=name,
        timeout=timeout,
        command_timeout=command_timeout,
        wall_clock=wall_clock,
    ) as monitor:
        yield await find_with_monitor(monitor)


@asynccontextmanager
async def _open_added(
    domain: Domain,
    shared: AsyncioLibvirtMonitor | TrioLibvirtMonitor,
    open_monitor: Callable[..., AbstractAsyncContextManager[_Opened]],
    timeout: float,
) -> AsyncGenerator[_Opened, None]:
    """Have QEMU add a monitor through libvirt's, and open that within a time."""
    deadline = shared.now() + timeout
    with await add_own_monitor(shared, deadline) as added:
        left = get_time_left(shared, deadline)
        async with open_monitor(added, name=shared.name, timeout=left) as monitor:
            monitor.pid = await find_pid(domain, monitor)
            yield monitor


async def find_pid(domain: Domain, monitor: Monitor) -> int | None:
    """Find the process id of a domain's QEMU, if libvirt's daemon is on this host.

    If the call is cancelled, it ends at once and has no effect.

    Args:
        domain: The domain.
        monitor: Its monitor.

    Returns:
        The process id; ``None`` if it cannot be known.
    """
    address: str = domain.connect().getURI()
    if urlsplit(address).hostname:
        return None
    return await qemu_process.find_qemu_pid(monitor)
