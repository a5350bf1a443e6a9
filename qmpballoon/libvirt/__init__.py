"""The libvirt front end: the balloon of a VM whose monitor libvirt holds.

::

    domain = find_domain("vm1")                       # or any virDomain of yours
    balloon = find_balloon(domain)                    # in blocking code
    balloon = await find_balloon_asyncio(domain)
    balloon = await find_balloon_trio(domain)

libvirt holds QEMU's monitor and passes commands through
(``virDomainQemuMonitorCommand``). It marks such a domain as tainted
("custom-monitor") in its log; that is a hint for support and changes nothing.

That call waits for as long as QEMU takes and cannot be interrupted. So each command
runs in a thread of its own, and the caller waits for it with a deadline. It blocks
neither an event loop, nor Ctrl-C, nor the end of the program. The commands of one
monitor are passed on in the order in which they are given.

QEMU 11.1 or later can add a monitor, and libvirt can hand QEMU a connection for it.
After that, libvirt is not involved; commands take less time, and there are events::

    with open_balloon(domain) as balloon:             # in blocking code
    async with open_balloon_asyncio(domain) as balloon:
    async with open_balloon_trio(domain) as balloon:

It needs ``libvirt-python``: ``pip install 'qmpballoon[libvirt]'``.
"""

from __future__ import annotations

from qmpballoon._transport.monitor_base import COMMAND_TIMEOUT
from qmpballoon._transport.sockets import OPEN_TIMEOUT
from qmpballoon.libvirt.connect import (
    find_balloon,
    find_balloon_asyncio,
    find_balloon_trio,
    find_pid,
    open_balloon,
    open_balloon_asyncio,
    open_balloon_trio,
    open_monitor,
    open_monitor_asyncio,
    open_monitor_trio,
)
from qmpballoon.libvirt.domain import Domain, find_domain, silence
from qmpballoon.libvirt.monitor import (
    AsyncioLibvirtMonitor,
    LibvirtMonitor,
    TrioLibvirtMonitor,
)

__all__ = [
    "COMMAND_TIMEOUT",
    "OPEN_TIMEOUT",
    "AsyncioLibvirtMonitor",
    "Domain",
    "LibvirtMonitor",
    "TrioLibvirtMonitor",
    "find_balloon",
    "find_balloon_asyncio",
    "find_balloon_trio",
    "find_domain",
    "find_pid",
    "open_balloon",
    "open_balloon_asyncio",
    "open_balloon_trio",
    "open_monitor",
    "open_monitor_asyncio",
    "open_monitor_trio",
    "silence",
]
