"""Open the monitors of a fleet's VMs, as long as there are file descriptors for them.

Each VM takes a descriptor, and a process may have few of them. Some stay free for other
things than VMs. Otherwise the last VM would leave none for the host's memory, or for
whoever reads the metrics.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from qmpballoon.address import LibvirtVm
from qmpballoon.errors import MonitorUnreachable
from qmpballoon.trio import open_monitor

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from qmpballoon.address import Vm
    from qmpballoon.monitor import Monitor

__all__ = ["Opener", "open_socket", "raise_descriptor_limit", "require_descriptors"]

# Descriptors that stay free: for /proc and the host's memory, a search for VMs, the
# metrics' clients, and the log.
_SPARE_DESCRIPTORS: Final = 8


class Opener(Protocol):
    """Opens a VM's monitor; an asynchronous context manager."""

    def __call__(
        self, vm: Vm, /, *, timeout: float, command_timeout: float
    ) -> AbstractAsyncContextManager[Monitor]:
        """Open a VM's monitor; it is closed at the end of the block.

        Args:
            vm: Where the monitor is.
            timeout: Seconds for connecting and the greeting.
            command_timeout: Seconds for each command.

        Raises:
            MonitorError: The monitor cannot be opened.
        """
        ...


def open_socket(
    vm: Vm, /, *, timeout: float, command_timeout: float
) -> AbstractAsyncContextManager[Monitor]:
    """Open the monitor of a VM that has a socket; as :class:`Opener`."""
    if isinstance(vm, LibvirtVm):
        raise MonitorUnreachable(
            f"{vm} is libvirt's, and this fleet opens sockets only: give open_fleet an"
            " opener that knows libvirt, or use the command `qmpballoon fleet`"
        )
    # A fleet is supervised for a long time, and others may want to reach its VMs.
    return open_monitor(
        vm, timeout=timeout, command_timeout=command_timeout, own="auto"
    )


def raise_descriptor_limit() -> None:
    """Let this process open more files: raise the soft limit to the hard limit.

    Each VM takes a descriptor. By default a process may have 1024, because select(2)
    cannot handle larger ones; nothing here uses it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # This can fail: a service may be forbidden to set limits, and the kernel has a
    # limit of its own, which the hard limit may exceed.
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_descriptors() -> None:
    """Keep some descriptors free for other things than the VMs' monitors.

    Raises:
        MonitorUnreachable: There is none for another VM.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        lowest = os.open("/", os.O_PATH | os.O_CLOEXEC)
        os.close(lowest)
    except OSError:
        lowest = soft
    if soft != resource.RLIM_INFINITY and lowest >= soft - _SPARE_DESCRIPTORS:
        raise MonitorUnreachable(
            f"there is no file descriptor left for it: {soft} are allowed; raise the"
            " limit (ulimit -n, LimitNOFILE=)"
        )
