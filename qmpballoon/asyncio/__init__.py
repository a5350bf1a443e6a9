"""The asyncio front end: monitors and balloons straight from an address.

::

    async with open_balloon("/run/vm1.qmp") as balloon:
        print(await balloon.query())

The event loop calls the monitor when QEMU has sent something. So replies, events and
the end of the connection are noticed at once, whatever the caller does. A monitor has
no task of its own, and closes its socket as soon as its block ends.

A command is registered and handed to the kernel without an ``await`` in between; the
event loop writes what the kernel does not accept at once. So a cancelled command leaves
neither half a message on the wire nor a reply that nobody expects.

QEMU serves one client on a monitor at a time. So a program that already speaks QMP with
a ``QMPClient`` of qemu.qmp has to share its connection::

    async with adopt_client(client) as balloon:   # your connected QMPClient
        await balloon.resize(2 * GiB)

The program can go on using the client for its own commands. At the end of the block the
client is disconnected, whatever has happened. ``find_balloon(client)`` leaves that to
you. Only these two functions need qemu.qmp, and load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon._lazy import attach
from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon._transport.sockets import OPEN_TIMEOUT, Target
from qmpballoon.asyncio.connect import (
    find_balloon,
    open_balloon,
    open_monitor,
    stay_connected,
)
from qmpballoon.asyncio.monitor import AsyncioMonitor, EventSubscription

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.asyncio.held_client import UNREAD_EVENTS as UNREAD_EVENTS
    from qmpballoon.asyncio.held_client import HeldClientMonitor as HeldClientMonitor
    from qmpballoon.asyncio.held_client import (
        HeldClientSubscription as HeldClientSubscription,
    )
    from qmpballoon.asyncio.held_client import adopt_client as adopt_client
    from qmpballoon.asyncio.held_client import (
        limit_unread_events as limit_unread_events,
    )

__all__ = [
    "COMMAND_TIMEOUT",
    "OPEN_TIMEOUT",
    "UNREAD_EVENTS",
    "AsyncioMonitor",
    "EventSubscription",
    "HeldClientMonitor",
    "HeldClientSubscription",
    "Target",
    "adopt_client",
    "find_balloon",
    "limit_unread_events",
    "open_balloon",
    "open_monitor",
    "stay_connected",
]

# What needs qemu.qmp is loaded when it is first used.
__getattr__: Callable[[str], object]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = attach(
    __name__,
    {
        "held_client": (
            *("UNREAD_EVENTS", "HeldClientMonitor", "HeldClientSubscription"),
            *("adopt_client", "limit_unread_events"),
        )
    },
)
