"""Many hosts: one view of all, a policy for each, and memory taken where it can be.

Memory does not move between hosts. So every host decides for itself, always; what
crosses is wishes and news. A server between the hosts (:class:`Bus`) keeps what each
host says of itself, the policy, and what hosts are asked to give. Nothing depends on
it: without it each host goes on by the last policy that it has seen.

It runs on trio only, as the supervisor of a fleet does. What decides imports no event
loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon._lazy import attach

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.cluster.bus import Bus as Bus
    from qmpballoon.cluster.documents import HostState as HostState
    from qmpballoon.cluster.documents import HostVms as HostVms
    from qmpballoon.cluster.documents import Job as Job
    from qmpballoon.cluster.documents import JobPhase as JobPhase
    from qmpballoon.cluster.documents import JobProgress as JobProgress
    from qmpballoon.cluster.documents import Malformed as Malformed
    from qmpballoon.cluster.documents import Offer as Offer
    from qmpballoon.cluster.documents import Policy as Policy
    from qmpballoon.cluster.documents import Quota as Quota
    from qmpballoon.cluster.documents import Room as Room
    from qmpballoon.cluster.documents import VmSummary as VmSummary
    from qmpballoon.cluster.documents import Wish as Wish
    from qmpballoon.cluster.valkey import BusAddress as BusAddress
    from qmpballoon.cluster.valkey import open_bus as open_bus
    from qmpballoon.cluster.valkey import parse_bus_address as parse_bus_address

_MODULES = {
    "bus": ("Bus",),
    "documents": (
        *("HostState", "HostVms", "Job", "Malformed", "Offer", "JobPhase", "Policy"),
        *("JobProgress", "Quota", "Room", "VmSummary", "Wish"),
    ),
    "valkey": ("BusAddress", "open_bus", "parse_bus_address"),
}
__getattr__: Callable[[str], object]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = attach(__name__, _MODULES)

# Written out, so that type checkers can read it. A test compares the two lists.
__all__ = [
    "Bus",
    "BusAddress",
    "HostState",
    "HostVms",
    "Job",
    "JobPhase",
    "JobProgress",
    "Malformed",
    "Offer",
    "Policy",
    "Quota",
    "Room",
    "VmSummary",
    "Wish",
    "open_bus",
    "parse_bus_address",
]
