"""Connects to a VM's monitor: on a socket, or through libvirt's passthrough.

libvirt's calls block for as long as its daemon does not answer, and cannot be
cancelled. So they run in a thread, which is left behind at the deadline.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from qmpballoon import trio as client
from qmpballoon.address import LibvirtVm
from qmpballoon.balloon.balloon import find_balloon
from qmpballoon.errors import MonitorTimeout, OwnMonitorUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qmpballoon._transport.own_monitor import Own
    from qmpballoon.address import Vm
    from qmpballoon.balloon.balloon import Balloon
    from qmpballoon.libvirt import Domain, TrioLibvirtMonitor
    from qmpballoon.trio import TrioMonitor

__all__ = ["open_balloon", "open_monitor"]

VmMonitor: TypeAlias = "TrioMonitor | TrioLibvirtMonitor"
_CLOSE_TIMEOUT: Final = 1.0  # seconds
# A limiter of its own: abandoned threads must not use up trio's, which others wait for.
# Trio's has 40 by default.
_THREADS: Final = trio.CapacityLimiter(40)


@asynccontextmanager
async def open_balloon(
    vm: Vm, *, timeout: float, own: Own = False
) -> AsyncGenerator[Balloon]:
    """Connect to a VM's monitor and find its balloon; as :func:`open_monitor`."""
    async with open_monitor(vm, timeout=timeout, own=own) as monitor:
        yield await find_balloon(monitor)


@asynccontextmanager
async def open_monitor(
    vm: Vm,
    *,
    timeout: float,
    command_timeout: float = client.COMMAND_TIMEOUT,
    own: Own = False,
) -> AsyncGenerator[VmMonitor]:
    """Connect to a VM's monitor.

    Args:
        vm: The monitor's address.
        timeout: Seconds for connecting.
        command_timeout: Seconds for each command.
        own: Whether to ask QEMU for a monitor of one's own. libvirt's passthrough keeps
            no other client out, but takes longer for each command.
    """
    if not isinstance(vm, LibvirtVm):
        async with client.open_monitor(
            vm, timeout=timeout, command_timeout=command_timeout, own=own
        ) as monitor:
            yield monitor
        return
    domain = await _find_domain(vm, timeout)
    try:
        async with AsyncExitStack() as closing:
            yield await _open_domain(
                domain, own, closing, timeout=timeout, command_timeout=command_timeout
            )
    finally:
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await trio.to_thread.run_sync(
                domain.connect().close, abandon_on_cancel=True, limiter=_THREADS
            )


async def _open_domain(
    domain: Domain,
    own: Own,
    closing: AsyncExitStack,
    *,
    timeout: float,
    command_timeout: float,
) -> VmMonitor:
    # Loaded only where it is needed: most VMs are given by a socket.
    from qmpballoon import libvirt  # noqa: PLC0415

    if own:
        try:
            return await closing.enter_async_context(
                libvirt.open_monitor_trio(
                    domain, timeout=timeout, command_timeout=command_timeout
                )
            )
        except OwnMonitorUnavailable:
            if own is True:
                raise
    passthrough = libvirt.TrioLibvirtMonitor(domain, command_timeout=command_timeout)
    passthrough.pid = await libvirt.find_pid(domain, passthrough)
    return passthrough


async def _find_domain(vm: LibvirtVm, timeout: float) -> Domain:
    from qmpballoon.libvirt import find_domain, silence  # noqa: PLC0415

    silence()
    with trio.move_on_after(timeout):
        return await trio.to_thread.run_sync(
            find_domain, vm.name, abandon_on_cancel=True, limiter=_THREADS
        )
    raise MonitorTimeout(
        f"libvirt did not find {vm.name!r} within {timeout:g} s: its daemon is stopped,"
        " overloaded or not installed, or its host cannot be reached;"
        " LIBVIRT_DEFAULT_URI says which one is meant"
    )
