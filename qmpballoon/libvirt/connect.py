"""From a domain to its balloon, with and without an event loop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from qmpballoon._transport import proc
from qmpballoon.balloon import find
from qmpballoon.blocking import balloon
from qmpballoon.libvirt.monitor import (
    COMMAND_TIMEOUT,
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
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> balloon.BlockingBalloon:
    """Find the balloon of a running domain, in plain calls.

    Args:
        domain: A ``libvirt.virDomain`` of the QEMU driver, over a connection that
            may write.
        command_timeout: Seconds for each command.
        wall_clock: Tells seconds since the epoch, for the age of statistics.

    Raises:
        NoBalloonDevice: The VM has none.
        MonitorClosed: The domain does not run.
        MonitorUnreachable: libvirt does not pass commands on for you.
        MonitorTimeout: QEMU, or libvirt, does not answer.
        ImportError: libvirt-python is not installed.
    """
    monitor = LibvirtMonitor(domain, command_timeout=command_timeout)
    monitor.pid = balloon.run(find_pid(domain, balloon.Neutral(monitor)))
    return balloon.find_balloon(
        monitor, resident=monitor.resident, wall_clock=wall_clock
    )


async def find_balloon_asyncio(
    domain: Domain,
    *,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> Balloon:
    """Find the balloon of a running domain, for use on asyncio.

    Args and raises: as :func:`find_balloon`.

    Cancellation: at once, with no effect.
    """
    monitor = AsyncioLibvirtMonitor(domain, command_timeout=command_timeout)
    return await _find(domain, monitor, wall_clock)


async def find_balloon_trio(
    domain: Domain,
    *,
    command_timeout: float = COMMAND_TIMEOUT,
    wall_clock: Callable[[], float] = time.time,
) -> Balloon:
    """Find the balloon of a running domain, for use on trio.

    Args and raises: as :func:`find_balloon`.

    Cancellation: at once, with no effect.
    """
    monitor = TrioLibvirtMonitor(domain, command_timeout=command_timeout)
    return await _find(domain, monitor, wall_clock)


async def _find(
    domain: Domain,
    monitor: AsyncioLibvirtMonitor | TrioLibvirtMonitor,
    wall_clock: Callable[[], float],
) -> Balloon:
    monitor.pid = await find_pid(domain, monitor)
    return await find.find_balloon(
        monitor, resident=monitor.resident, wall_clock=wall_clock
    )


async def find_pid(domain: Domain, monitor: Monitor) -> int | None:
    """Find the process id of a domain's QEMU, if libvirt's daemon is on this host.

    Args:
        domain: The domain.
        monitor: The way to its QEMU.

    Cancellation: at once, with no effect.
    """
    address: str = domain.connect().getURI()
    if urlsplit(address).hostname:
        return None
    return await proc.find_qemu_pid(monitor)
