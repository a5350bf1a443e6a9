"""Finding the balloon of a domain: in blocking code, on asyncio and on trio."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from qmpballoon._transport import qemu_process
from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon.balloon.balloon import find_balloon as find_with_monitor
from qmpballoon.blocking import balloon
from qmpballoon.libvirt.monitor import (
    AsyncioLibvirtMonitor,
    LibvirtMonitor,
    TrioLibvirtMonitor,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.libvirt.domain import Domain
    from qmpballoon.monitor import Monitor

__all__ = [
    "find_balloon",
    "find_balloon_asyncio",
    "find_balloon_trio",
    "find_pid",
]


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
