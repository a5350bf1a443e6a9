"""A fake QEMU for tests, and a lab that boots guests in a real one.

The fake QEMU is a model of QEMU, its balloon device and a Linux guest. It answers a QMP
client byte for byte as a QEMU of its version does. There are two ways to use it:

- :func:`serve` serves a VM on a unix socket, for clients of any kind, in real time;
- :func:`simulate` runs a trio function against VMs in memory, on a clock that jumps to
  the next event; :func:`simulate_asyncio` does the same with a function on asyncio.

:mod:`qmpballoon.testing.strategies` has hypothesis strategies for guests and faults,
:mod:`qmpballoon.testing.lab` boots guests in a real QEMU.

Each name that is exported here is loaded when it is first used. Importing this package,
as the pytest plugin and the lab do, therefore loads neither trio nor hypothesis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon._lazy import attach

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.testing.asyncio_world import AsyncioFakeQemu as AsyncioFakeQemu
    from qmpballoon.testing.asyncio_world import simulate_asyncio as simulate_asyncio
    from qmpballoon.testing.faults import NO_FAULTS as NO_FAULTS
    from qmpballoon.testing.faults import FaultPlan as FaultPlan
    from qmpballoon.testing.model.config import SECOND as SECOND
    from qmpballoon.testing.model.config import FileReads as FileReads
    from qmpballoon.testing.model.config import GuestConfig as GuestConfig
    from qmpballoon.testing.model.config import MachineConfig as MachineConfig
    from qmpballoon.testing.model.config import WorkloadStep as WorkloadStep
    from qmpballoon.testing.model.config import ramp as ramp
    from qmpballoon.testing.model.hmp_session import HmpSession as HmpSession
    from qmpballoon.testing.model.machine import Machine as Machine
    from qmpballoon.testing.model.monitor import Session as Session
    from qmpballoon.testing.model.profiles import PROFILES as PROFILES
    from qmpballoon.testing.model.profiles import Profile as Profile
    from qmpballoon.testing.model.profiles import profile as profile
    from qmpballoon.testing.server import FakeQemu as FakeQemu
    from qmpballoon.testing.server import open_fake as open_fake
    from qmpballoon.testing.threaded import ThreadedFake as ThreadedFake
    from qmpballoon.testing.threaded import serve as serve
    from qmpballoon.testing.world import run_world as run_world
    from qmpballoon.testing.world import simulate as simulate

_MODULES = {
    "asyncio_world": ("AsyncioFakeQemu", "simulate_asyncio"),
    "faults": ("NO_FAULTS", "FaultPlan"),
    "model.config": (
        *("SECOND", "FileReads", "GuestConfig", "MachineConfig", "WorkloadStep"),
        "ramp",
    ),
    "model.hmp_session": ("HmpSession",),
    "model.machine": ("Machine",),
    "model.monitor": ("Session",),
    "model.profiles": ("PROFILES", "Profile", "profile"),
    "server": ("FakeQemu", "open_fake"),
    "threaded": ("ThreadedFake", "serve"),
    "world": ("run_world", "simulate"),
}
__getattr__: Callable[[str], object]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = attach(__name__, _MODULES)

# Written out, so that type checkers can read it. A test compares the two lists.
__all__ = [
    "NO_FAULTS",
    "PROFILES",
    "SECOND",
    "AsyncioFakeQemu",
    "FakeQemu",
    "FaultPlan",
    "FileReads",
    "GuestConfig",
    "HmpSession",
    "Machine",
    "MachineConfig",
    "Profile",
    "Session",
    "ThreadedFake",
    "WorkloadStep",
    "open_fake",
    "profile",
    "ramp",
    "run_world",
    "serve",
    "simulate",
    "simulate_asyncio",
]
