"""The blocking front end: plain sockets, plain calls, no event loop, no threads.

::

    with open_balloon("/run/vm1.qmp") as balloon:
        print(balloon.query())

What QEMU sends is read while somebody waits for it: in a command, or in
:meth:`EventSubscription.receive`. Threads may share a monitor; their commands then
run one after the other, and waiting for one's turn counts as waiting.

Waiting is all in one place, between messages, and what moves bytes never waits.
There Ctrl-C is put off for the microseconds that it takes: so an interrupted
command leaves no half a message behind, and the monitor can still be used to give
a guest its memory back.
"""

from __future__ import annotations

from qmpballoon.blocking.balloon import (
    BlockingBalloon,
    BlockingSampler,
    PlainMonitor,
    find_balloon,
)
from qmpballoon.blocking.connect import COMMAND_TIMEOUT as COMMAND_TIMEOUT
from qmpballoon.blocking.connect import OPEN_TIMEOUT as OPEN_TIMEOUT
from qmpballoon.blocking.connect import Target as Target
from qmpballoon.blocking.connect import open_balloon, open_monitor
from qmpballoon.blocking.monitor import BlockingMonitor
from qmpballoon.blocking.subscription import EventSubscription

__all__ = [
    "BlockingBalloon",
    "BlockingMonitor",
    "BlockingSampler",
    "EventSubscription",
    "PlainMonitor",
    "find_balloon",
    "open_balloon",
    "open_monitor",
]
