"""Many hosts: one view of all, a policy for each, and memory taken where it can be.

Memory does not move between hosts. So every host always decides for itself, and only
states and wishes are exchanged between hosts. A server between them (:class:`Bus`)
keeps the state of each host, the policy, and what hosts are asked to give. No host
depends on it: without it each host goes on with the last policy that it has seen.

It runs on trio only, as the supervisor of a fleet does. The code that decides imports
no event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon._lazy import attach

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.cluster._fields import Malformed as Malformed
    from qmpballoon.cluster.agent import Agent as Agent
    from qmpballoon.cluster.agent import AgentStatus as AgentStatus
    from qmpballoon.cluster.agent import LocalHost as LocalHost
    from qmpballoon.cluster.agent import LocalView as LocalView
    from qmpballoon.cluster.bus import Bus as Bus
    from qmpballoon.cluster.documents import HostState as HostState
    from qmpballoon.cluster.documents import HostVms as HostVms
    from qmpballoon.cluster.documents import Job as Job
    from qmpballoon.cluster.documents import JobPhase as JobPhase
    from qmpballoon.cluster.documents import JobProgress as JobProgress
    from qmpballoon.cluster.documents import Offer as Offer
    from qmpballoon.cluster.documents import Policy as Policy
    from qmpballoon.cluster.documents import Quota as Quota
    from qmpballoon.cluster.documents import Room as Room
    from qmpballoon.cluster.documents import VmSummary as VmSummary
    from qmpballoon.cluster.documents import Wish as Wish
    from qmpballoon.cluster.fleet_host import FleetHost as FleetHost
    from qmpballoon.cluster.job_report import HostReport as HostReport
    from qmpballoon.cluster.job_report import JobReport as JobReport
    from qmpballoon.cluster.jobs import JobPlan as JobPlan
    from qmpballoon.cluster.jobs import end_job as end_job
    from qmpballoon.cluster.jobs import find_job as find_job
    from qmpballoon.cluster.jobs import follow_job as follow_job
    from qmpballoon.cluster.jobs import plan_job as plan_job
    from qmpballoon.cluster.jobs import start_job as start_job
    from qmpballoon.cluster.memory import MemoryBus as MemoryBus
    from qmpballoon.cluster.memory import MemoryServer as MemoryServer
    from qmpballoon.cluster.policy_change import PolicyChange as PolicyChange
    from qmpballoon.cluster.policy_change import apply_policy as apply_policy
    from qmpballoon.cluster.policy_change import format_policy as format_policy
    from qmpballoon.cluster.policy_change import prepare_policy as prepare_policy
    from qmpballoon.cluster.spreading import Spread as Spread
    from qmpballoon.cluster.spreading import spread as spread
    from qmpballoon.cluster.store import Store as Store
    from qmpballoon.cluster.valkey import BusAddress as BusAddress
    from qmpballoon.cluster.valkey import open_bus as open_bus
    from qmpballoon.cluster.valkey import parse_bus_address as parse_bus_address
    from qmpballoon.cluster.view import ClusterView as ClusterView
    from qmpballoon.cluster.view import HostView as HostView
    from qmpballoon.cluster.view import RoomLevel as RoomLevel
    from qmpballoon.cluster.view import find_room as find_room
    from qmpballoon.cluster.view import look as look
    from qmpballoon.cluster.wishes import Permits as Permits

_MODULES = {
    "_fields": ("Malformed",),
    "agent": ("Agent", "AgentStatus", "LocalHost", "LocalView"),
    "bus": ("Bus",),
    "documents": (
        "HostState",
        "HostVms",
        "Job",
        "JobPhase",
        "JobProgress",
        "Offer",
        "Policy",
        "Quota",
        "Room",
        "VmSummary",
        "Wish",
    ),
    "fleet_host": ("FleetHost",),
    "job_report": ("HostReport", "JobReport"),
    "jobs": (
        *("JobPlan", "end_job", "find_job"),
        *("follow_job", "plan_job", "start_job"),
    ),
    "memory": ("MemoryBus", "MemoryServer"),
    "policy_change": (
        *("PolicyChange", "apply_policy"),
        *("format_policy", "prepare_policy"),
    ),
    "spreading": ("Spread", "spread"),
    "store": ("Store",),
    "valkey": ("BusAddress", "open_bus", "parse_bus_address"),
    "view": ("ClusterView", "HostView", "RoomLevel", "find_room", "look"),
    "wishes": ("Permits",),
}
__getattr__: Callable[[str], object]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = attach(__name__, _MODULES)

# Written out, so that type checkers can read it. A test compares the two lists.
__all__ = [
    "Agent",
    "AgentStatus",
    "Bus",
    "BusAddress",
    "ClusterView",
    "FleetHost",
    "HostReport",
    "HostState",
    "HostView",
    "HostVms",
    "Job",
    "JobPhase",
    "JobPlan",
    "JobProgress",
    "JobReport",
    "LocalHost",
    "LocalView",
    "Malformed",
    "MemoryBus",
    "MemoryServer",
    "Offer",
    "Permits",
    "Policy",
    "PolicyChange",
    "Quota",
    "Room",
    "RoomLevel",
    "Spread",
    "Store",
    "VmSummary",
    "Wish",
    "apply_policy",
    "end_job",
    "find_job",
    "find_room",
    "follow_job",
    "format_policy",
    "look",
    "open_bus",
    "parse_bus_address",
    "plan_job",
    "prepare_policy",
    "spread",
    "start_job",
]
