"""The blocking front end: blocking calls on sockets, no event loop and no thread.

::

    with open_balloon("/run/vm1.qmp") as balloon:
        print(balloon.query())

What QEMU sends is read only during a call: a command, or
:meth:`EventSubscription.receive`. Threads may share a monitor. Their commands then run
one after the other, and the time that a command waits for its turn counts towards its
timeout.

A call waits only between messages; reading and writing never wait. Ctrl-C is delayed
for the microseconds that they take. So an interrupted command does not leave half a
message behind, and the monitor can still be used to give a guest its memory back.
"""

from __future__ import annotations

from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon._transport.sockets import OPEN_TIMEOUT, Target
from qmpballoon.blocking.balloon import (
    BlockingBalloon,
    BlockingSampler,
    SyncMonitor,
    find_balloon,
)
from qmpballoon.blocking.connect import (
    open_balloon,
    open_monitor,
    stay_connected,
)
from qmpballoon.blocking.monitor import BlockingMonitor, EventSubscription

__all__ = [
    "COMMAND_TIMEOUT",
    "OPEN_TIMEOUT",
    "BlockingBalloon",
    "BlockingMonitor",
    "BlockingSampler",
    "EventSubscription",
    "SyncMonitor",
    "Target",
    "find_balloon",
    "open_balloon",
    "open_monitor",
    "stay_connected",
]
