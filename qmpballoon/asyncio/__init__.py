"""The asyncio front end, over qemu.qmp, which an orchestrator may hold already.

::

    balloon = await find_balloon(client)          # your connected QMPClient
    await balloon.resize(2 * GiB)

QEMU serves one client on a monitor at a time. So an orchestrator that speaks QMP
shares its connection; it goes on using its client for its own commands, and this
adds neither an event loop nor a thread. Programs without a client have one opened
by :func:`open_balloon`.

What qemu.qmp does not do is done here. Commands have deadlines, and no more than
eight of ours are with QEMU at a time, late ones included. Arguments that JSON does
not know are refused before they can break the connection. And where nobody reads
events, they do not pile up in memory.

Each command runs in a task of its own, because qemu.qmp forgets a command whose
caller is cancelled: its place in QEMU's queue would count as free before it is.

Only qemu.qmp's LGPL parts are used.
"""

from __future__ import annotations

from qmpballoon.asyncio.connect import OPEN_TIMEOUT as OPEN_TIMEOUT
from qmpballoon.asyncio.connect import Target as Target
from qmpballoon.asyncio.connect import find_balloon, open_balloon, open_monitor
from qmpballoon.asyncio.monitor import COMMAND_TIMEOUT as COMMAND_TIMEOUT
from qmpballoon.asyncio.monitor import UNREAD_EVENTS as UNREAD_EVENTS
from qmpballoon.asyncio.monitor import AsyncioMonitor
from qmpballoon.asyncio.subscription import EventSubscription

__all__ = [
    "AsyncioMonitor",
    "EventSubscription",
    "find_balloon",
    "open_balloon",
    "open_monitor",
]
