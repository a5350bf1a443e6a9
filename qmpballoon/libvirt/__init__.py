"""The balloon of a VM whose monitor belongs to libvirt.

::

    domain = find_domain("vm1")                       # or any virDomain of yours
    balloon = find_balloon(domain)                    # plain calls
    balloon = await find_balloon_asyncio(domain)      # or coroutines
    balloon = await find_balloon_trio(domain)

libvirt keeps QEMU's monitor to itself, and passes commands through
(``virDomainQemuMonitorCommand``). It marks such a domain as tainted
("custom-monitor") in its log, which is meant for support, and changes nothing.

That call waits for as long as QEMU takes and cannot be broken off. So each command
has a thread of its own, and whoever asks waits for it with a deadline. An event
loop is not held up; neither is Ctrl-C, nor the end of the program. Commands of one
monitor are passed on in the order in which they are given.

``libvirt-python`` is needed, by ``pip install 'qmpballoon[libvirt]'``.
"""

from __future__ import annotations

from qmpballoon.libvirt.connect import (
    find_balloon,
    find_balloon_asyncio,
    find_balloon_trio,
    find_pid,
)
from qmpballoon.libvirt.domain import Domain, find_domain, silence
from qmpballoon.libvirt.monitor import COMMAND_TIMEOUT as COMMAND_TIMEOUT
from qmpballoon.libvirt.monitor import (
    AsyncioLibvirtMonitor,
    LibvirtMonitor,
    TrioLibvirtMonitor,
)

__all__ = [
    "AsyncioLibvirtMonitor",
    "Domain",
    "LibvirtMonitor",
    "TrioLibvirtMonitor",
    "find_balloon",
    "find_balloon_asyncio",
    "find_balloon_trio",
    "find_domain",
    "find_pid",
    "silence",
]
