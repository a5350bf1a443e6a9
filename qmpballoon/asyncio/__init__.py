"""The asyncio front end, over a ``QMPClient`` of qemu.qmp that you may hold already.

::

    balloon = await find_balloon(client)          # your connected QMPClient
    await balloon.resize(2 * GiB)

QEMU serves one client on a monitor at a time. So a program that already speaks QMP
shares its connection: it goes on using its client for its own commands, and no event
loop or thread is added. A program without a client calls :func:`open_balloon`, which
opens one.

This front end adds what qemu.qmp does not do. Commands have deadlines. At most eight
commands of a monitor are with QEMU at a time, those whose deadline has passed included.
Arguments that are no JSON are refused before they can break the connection. Events that
nobody reads do not pile up in memory.

Each command runs in a task of its own, because qemu.qmp forgets a command whose caller
is cancelled, and its place in QEMU's queue would count as free too early.

Only the parts of qemu.qmp under the LGPL are used.
"""

from __future__ import annotations

from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon._transport.sockets import OPEN_TIMEOUT, Target
from qmpballoon.asyncio.connect import find_balloon, open_balloon, open_monitor
from qmpballoon.asyncio.monitor import UNREAD_EVENTS, AsyncioMonitor, EventSubscription

__all__ = [
    "COMMAND_TIMEOUT",
    "OPEN_TIMEOUT",
    "UNREAD_EVENTS",
    "AsyncioMonitor",
    "EventSubscription",
    "Target",
    "find_balloon",
    "open_balloon",
    "open_monitor",
]
