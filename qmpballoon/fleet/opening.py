"""The way to the VMs of a fleet: by default a socket, and whatever else is given."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from qmpballoon.address import LibvirtVm
from qmpballoon.errors import MonitorUnreachable
from qmpballoon.monitor import Monitor
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from qmpballoon.address import Vm

__all__ = ["FleetMonitor", "Opener", "open_socket"]


class Opener(Protocol):
    """Reaches a VM, and is done with it when the block is left."""

    def __call__(
        self, vm: Vm, /, *, timeout: float, command_timeout: float
    ) -> AbstractAsyncContextManager[FleetMonitor]:
        """Reach a VM.

        Args:
            vm: Where it is.
            timeout: Seconds for that.
            command_timeout: Seconds for each command.

        Raises:
            MonitorError: It cannot be reached.
        """
        ...


class FleetMonitor(Monitor, Protocol):
    """A monitor that knows what its QEMU holds."""

    def resident(self) -> int | None:
        """Return QEMU's resident memory in bytes, ``None`` if it cannot be known."""
        ...


@asynccontextmanager
async def open_socket(
    vm: Vm, /, *, timeout: float, command_timeout: float
) -> AsyncGenerator[FleetMonitor, None]:
    """Reach a VM that has a monitor of its own; as :class:`Opener`."""
    if isinstance(vm, LibvirtVm):
        raise MonitorUnreachable(
            f"{vm} is libvirt's, and this fleet reaches sockets alone: the command"
            " `qmpballoon fleet` reaches both"
        )
    async with open_monitor(
        vm, timeout=timeout, command_timeout=command_timeout
    ) as monitor:
        yield monitor
