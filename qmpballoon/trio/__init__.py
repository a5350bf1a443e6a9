"""The trio front end: monitors and balloons straight from an address.

::

    async with open_balloon("/run/vm1.qmp") as balloon:
        print(await balloon.query())

One background task reads what QEMU sends, for all monitors of a trio run. So replies,
events and the end of the connection are noticed at once, whatever the caller does. The
task ends when the last monitor is closed. It never raises: errors are raised in the
calls that are waiting, and in later calls. So an exception leaves the block as it was
raised, and not in an exception group. A monitor over TLS, or over a
:class:`trio.abc.Stream`, has tasks of its own, which end with its block.

A command is registered and handed to the kernel without an ``await`` in between. What
the kernel does not accept at once is written in the background, where no caller's
cancellation can interrupt it. So a cancelled command leaves neither half a message on
the wire nor a reply that nobody expects.
"""

from __future__ import annotations

from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon._transport.sockets import OPEN_TIMEOUT
from qmpballoon.balloon.balloon import find_balloon
from qmpballoon.trio.connect import (
    Target,
    open_balloon,
    open_monitor,
    stay_connected,
)
from qmpballoon.trio.monitor import EventSubscription, TrioMonitor

__all__ = [
    "COMMAND_TIMEOUT",
    "OPEN_TIMEOUT",
    "EventSubscription",
    "Target",
    "TrioMonitor",
    "find_balloon",
    "open_balloon",
    "open_monitor",
    "stay_connected",
]
