"""The trio front end: monitors and balloons straight from an address.

::

    async with open_balloon("/run/vm1.qmp") as balloon:
        print(await balloon.query())

Everything that QEMU sends is read in the background, for all monitors of a trio run by
one task. So replies, events and the end of the connection are noticed at once, whatever
the caller does. The task ends when the last monitor is closed. It never raises: an
error is raised to the callers that wait, and to those that call later. So an exception
leaves the block as it was raised, in no exception group. A monitor over TLS, or over a
:class:`trio.abc.Stream`, has tasks of its own, which end with its block.

A command is registered and handed to the kernel without an ``await`` in between. What
the kernel does not take at once is written in the background; no caller's cancellation
reaches it. So a cancelled command leaves neither half a message on the wire nor a reply
that nobody expects.
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
