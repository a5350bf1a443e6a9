"""The trio front end: monitors and balloons, straight from an address.

::

    async with open_balloon("/run/vm1.qmp") as balloon:
        print(await balloon.query())

One background task a monitor reads all that QEMU sends, so that replies, events
and the end of the connection are noticed at once, whatever the caller does. It
lives no longer than the ``async with`` block, and it never raises: what goes
wrong is told to those who wait, and to those who ask later. So exceptions leave
the block as they are, in no exception group.

A command is registered and handed to the kernel in one go, with no ``await`` in
between. What the kernel does not take at once is written by a second task that
no caller's cancellation reaches. Hence a cancelled command can leave neither half
a message on the wire nor a reply that nobody knows.
"""

from __future__ import annotations

from qmpballoon.trio._transport import Target as Target
from qmpballoon.trio.connect import COMMAND_TIMEOUT as COMMAND_TIMEOUT
from qmpballoon.trio.connect import OPEN_TIMEOUT as OPEN_TIMEOUT
from qmpballoon.trio.connect import open_balloon, open_monitor
from qmpballoon.trio.monitor import TrioMonitor
from qmpballoon.trio.subscription import EventSubscription

__all__ = ["EventSubscription", "TrioMonitor", "open_balloon", "open_monitor"]
