"""Many VMs on one host: memory is moved to the guests that need it.

:func:`open_fleet` connects to the VMs that a source returns (:func:`make_source`), and
polls them. :func:`make_plan` decides which guests give memory and which get some. It is
pure: each plan can be shown before it is carried out, simulated and compared.
:func:`run_control_loop` makes a plan each second and carries it out::

    import random
    from qmpballoon import fleet

    async def keep_reserve():
        memory = fleet.HostMemory()
        rules = fleet.Rules.for_host(memory.read().total)
        vms = fleet.make_source(["/run/vms/*.qmp"])
        async with fleet.open_fleet(vms, random.Random()) as supervisor:
            await fleet.run_control_loop(supervisor, memory.read, rules)

Each name that is exported here is loaded when it is first used. So plans can be made
without trio, and only metrics need prometheus-client, from the extra ``prometheus``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon._lazy import attach

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.fleet.control_loop import FleetReclaimReport as FleetReclaimReport
    from qmpballoon.fleet.control_loop import VmReclaimReport as VmReclaimReport
    from qmpballoon.fleet.control_loop import carry_out as carry_out
    from qmpballoon.fleet.control_loop import decide as decide
    from qmpballoon.fleet.control_loop import reclaim as reclaim
    from qmpballoon.fleet.control_loop import run_control_loop as run_control_loop
    from qmpballoon.fleet.guests import Guest as Guest
    from qmpballoon.fleet.guests import Host as Host
    from qmpballoon.fleet.host_memory import HostMemory as HostMemory
    from qmpballoon.fleet.metrics import ClusterLink as ClusterLink
    from qmpballoon.fleet.metrics import FleetCollector as FleetCollector
    from qmpballoon.fleet.metrics import FleetSnapshot as FleetSnapshot
    from qmpballoon.fleet.metrics import serve_metrics as serve_metrics
    from qmpballoon.fleet.openers import Opener as Opener
    from qmpballoon.fleet.openers import (
        raise_descriptor_limit as raise_descriptor_limit,
    )
    from qmpballoon.fleet.policy import FleetPlan as FleetPlan
    from qmpballoon.fleet.policy import Move as Move
    from qmpballoon.fleet.policy import PolicyName as PolicyName
    from qmpballoon.fleet.policy import Rules as Rules
    from qmpballoon.fleet.policy import make_plan as make_plan
    from qmpballoon.fleet.policy import take as take
    from qmpballoon.fleet.sources import Source as Source
    from qmpballoon.fleet.sources import make_source as make_source
    from qmpballoon.fleet.supervisor import Supervisor as Supervisor
    from qmpballoon.fleet.supervisor import open_fleet as open_fleet
    from qmpballoon.fleet.vm_spec import Bounds as Bounds
    from qmpballoon.fleet.vm_spec import Refused as Refused
    from qmpballoon.fleet.vm_spec import VmSpec as VmSpec
    from qmpballoon.fleet.vm_task import Settings as Settings
    from qmpballoon.fleet.vm_view import VM_STATES as VM_STATES
    from qmpballoon.fleet.vm_view import LeftGuest as LeftGuest
    from qmpballoon.fleet.vm_view import SmallGuest as SmallGuest
    from qmpballoon.fleet.vm_view import VmCounters as VmCounters
    from qmpballoon.fleet.vm_view import VmState as VmState
    from qmpballoon.fleet.vm_view import VmView as VmView

_MODULES = {
    "control_loop": (
        *("FleetReclaimReport", "VmReclaimReport"),
        *("carry_out", "decide", "reclaim", "run_control_loop"),
    ),
    "guests": ("Guest", "Host"),
    "host_memory": ("HostMemory",),
    "metrics": ("ClusterLink", "FleetCollector", "FleetSnapshot", "serve_metrics"),
    "openers": ("Opener", "raise_descriptor_limit"),
    "policy": ("FleetPlan", "Move", "PolicyName", "Rules", "make_plan", "take"),
    "sources": ("Source", "make_source"),
    "vm_spec": ("Bounds", "Refused", "VmSpec"),
    "supervisor": ("Supervisor", "open_fleet"),
    "vm_task": ("Settings",),
    "vm_view": (
        *("VM_STATES", "LeftGuest", "SmallGuest"),
        *("VmCounters", "VmState", "VmView"),
    ),
}
__getattr__: Callable[[str], object]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = attach(__name__, _MODULES)

# Written out, so that type checkers can read it. A test compares the two lists.
__all__ = [
    "VM_STATES",
    "Bounds",
    "ClusterLink",
    "FleetCollector",
    "FleetPlan",
    "FleetReclaimReport",
    "FleetSnapshot",
    "Guest",
    "Host",
    "HostMemory",
    "LeftGuest",
    "Move",
    "Opener",
    "PolicyName",
    "Refused",
    "Rules",
    "Settings",
    "SmallGuest",
    "Source",
    "Supervisor",
    "VmCounters",
    "VmReclaimReport",
    "VmSpec",
    "VmState",
    "VmView",
    "carry_out",
    "decide",
    "make_plan",
    "make_source",
    "open_fleet",
    "raise_descriptor_limit",
    "reclaim",
    "run_control_loop",
    "serve_metrics",
    "take",
]
