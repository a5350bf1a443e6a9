"""Drive QEMU's virtio-balloon straight over the QMP monitor socket.

::

    import trio
    from qmpballoon import GiB, open_balloon

    async def main():
        async with open_balloon("/run/vm1.qmp") as balloon:
            await balloon.resize(2 * GiB)

    trio.run(main)

The names here are loaded when they are first used. So importing the package loads no
event loop, and a program on asyncio never loads trio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpballoon._lazy import attach

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon._transport.qemu_process import find_peer_pid as find_peer_pid
    from qmpballoon._transport.qemu_process import find_qemu_pid as find_qemu_pid
    from qmpballoon._transport.qemu_process import read_resident as read_resident
    from qmpballoon.address import AbstractAddress as AbstractAddress
    from qmpballoon.address import Address as Address
    from qmpballoon.address import LibvirtVm as LibvirtVm
    from qmpballoon.address import TcpAddress as TcpAddress
    from qmpballoon.address import UnixAddress as UnixAddress
    from qmpballoon.address import Vm as Vm
    from qmpballoon.address import parse_address as parse_address
    from qmpballoon.address import parse_vm as parse_vm
    from qmpballoon.balloon import RESIZE_GUARD as RESIZE_GUARD
    from qmpballoon.balloon import Balloon as Balloon
    from qmpballoon.balloon import BalloonInfo as BalloonInfo
    from qmpballoon.balloon import Binding as Binding
    from qmpballoon.balloon import Diagnosis as Diagnosis
    from qmpballoon.balloon import DiskReads as DiskReads
    from qmpballoon.balloon import Guard as Guard
    from qmpballoon.balloon import GuestStats as GuestStats
    from qmpballoon.balloon import OnStall as OnStall
    from qmpballoon.balloon import Outcome as Outcome
    from qmpballoon.balloon import Phase as Phase
    from qmpballoon.balloon import Plan as Plan
    from qmpballoon.balloon import Progress as Progress
    from qmpballoon.balloon import ReadRates as ReadRates
    from qmpballoon.balloon import ReclaimOutcome as ReclaimOutcome
    from qmpballoon.balloon import ReclaimReport as ReclaimReport
    from qmpballoon.balloon import ResizeResult as ResizeResult
    from qmpballoon.balloon import Sample as Sample
    from qmpballoon.balloon import Sampler as Sampler
    from qmpballoon.balloon import Snapshot as Snapshot
    from qmpballoon.balloon import Stage as Stage
    from qmpballoon.balloon import StallKind as StallKind
    from qmpballoon.balloon import StallLimits as StallLimits
    from qmpballoon.balloon import Timeline as Timeline
    from qmpballoon.balloon import VmInfo as VmInfo
    from qmpballoon.balloon import find_balloon as find_balloon
    from qmpballoon.errors import BalloonBusy as BalloonBusy
    from qmpballoon.errors import BalloonError as BalloonError
    from qmpballoon.errors import BalloonStalled as BalloonStalled
    from qmpballoon.errors import BalloonTimeout as BalloonTimeout
    from qmpballoon.errors import BalloonUnavailable as BalloonUnavailable
    from qmpballoon.errors import BusError as BusError
    from qmpballoon.errors import ClusterBusy as ClusterBusy
    from qmpballoon.errors import ClusterError as ClusterError
    from qmpballoon.errors import CommandError as CommandError
    from qmpballoon.errors import CommandNotFound as CommandNotFound
    from qmpballoon.errors import DeviceNotFound as DeviceNotFound
    from qmpballoon.errors import MonitorBusy as MonitorBusy
    from qmpballoon.errors import MonitorClosed as MonitorClosed
    from qmpballoon.errors import MonitorError as MonitorError
    from qmpballoon.errors import MonitorTimeout as MonitorTimeout
    from qmpballoon.errors import MonitorUnreachable as MonitorUnreachable
    from qmpballoon.errors import NoBalloonDevice as NoBalloonDevice
    from qmpballoon.errors import OwnMonitorUnavailable as OwnMonitorUnavailable
    from qmpballoon.errors import ProtocolError as ProtocolError
    from qmpballoon.errors import QmpBalloonError as QmpBalloonError
    from qmpballoon.errors import StatsTimeout as StatsTimeout
    from qmpballoon.errors import StatsUnavailable as StatsUnavailable
    from qmpballoon.errors import UnsafeTarget as UnsafeTarget
    from qmpballoon.errors import UntrustedMonitor as UntrustedMonitor
    from qmpballoon.errors import make_command_error as make_command_error
    from qmpballoon.monitor import Monitor as Monitor
    from qmpballoon.monitor import OwedSize as OwedSize
    from qmpballoon.qmp.messages import Event as Event
    from qmpballoon.sizes import GiB as GiB
    from qmpballoon.sizes import KiB as KiB
    from qmpballoon.sizes import MiB as MiB
    from qmpballoon.sizes import PiB as PiB
    from qmpballoon.sizes import TiB as TiB
    from qmpballoon.sizes import format_size as format_size
    from qmpballoon.sizes import parse_size as parse_size
    from qmpballoon.trio import TrioMonitor as TrioMonitor
    from qmpballoon.trio import open_balloon as open_balloon
    from qmpballoon.trio import open_monitor as open_monitor

__version__ = "0.1.0"

_MODULES = {
    "_transport.qemu_process": ("find_peer_pid", "find_qemu_pid", "read_resident"),
    "address": (
        "AbstractAddress",
        "Address",
        "LibvirtVm",
        "TcpAddress",
        "UnixAddress",
        "Vm",
        "parse_address",
        "parse_vm",
    ),
    "balloon": (
        "RESIZE_GUARD",
        "Balloon",
        "BalloonInfo",
        "Binding",
        "Diagnosis",
        "DiskReads",
        "Guard",
        "GuestStats",
        "OnStall",
        "Outcome",
        "Phase",
        "Plan",
        "Progress",
        "ReadRates",
        "ReclaimOutcome",
        "ReclaimReport",
        "ResizeResult",
        "Sample",
        "Sampler",
        "Snapshot",
        "Stage",
        "StallKind",
        "StallLimits",
        "Timeline",
        "VmInfo",
        "find_balloon",
    ),
    "trio": ("TrioMonitor", "open_balloon", "open_monitor"),
    "errors": (
        "BalloonBusy",
        "BalloonError",
        "BalloonStalled",
        "BalloonTimeout",
        "BalloonUnavailable",
        "BusError",
        "ClusterBusy",
        "ClusterError",
        "CommandError",
        "CommandNotFound",
        "DeviceNotFound",
        "MonitorBusy",
        "MonitorClosed",
        "MonitorError",
        "MonitorTimeout",
        "MonitorUnreachable",
        "NoBalloonDevice",
        "OwnMonitorUnavailable",
        "ProtocolError",
        "QmpBalloonError",
        "StatsTimeout",
        "StatsUnavailable",
        "UnsafeTarget",
        "UntrustedMonitor",
        "make_command_error",
    ),
    "monitor": ("Monitor", "OwedSize"),
    "qmp.messages": ("Event",),
    "sizes": ("GiB", "KiB", "MiB", "PiB", "TiB", "format_size", "parse_size"),
}
__getattr__: Callable[[str], object]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = attach(__name__, _MODULES)

# Written out, so that type checkers can read it; a test holds that it is complete.
__all__ = [
    "RESIZE_GUARD",
    "AbstractAddress",
    "Address",
    "Balloon",
    "BalloonBusy",
    "BalloonError",
    "BalloonInfo",
    "BalloonStalled",
    "BalloonTimeout",
    "BalloonUnavailable",
    "Binding",
    "BusError",
    "ClusterBusy",
    "ClusterError",
    "CommandError",
    "CommandNotFound",
    "DeviceNotFound",
    "Diagnosis",
    "DiskReads",
    "Event",
    "GiB",
    "Guard",
    "GuestStats",
    "KiB",
    "LibvirtVm",
    "MiB",
    "Monitor",
    "MonitorBusy",
    "MonitorClosed",
    "MonitorError",
    "MonitorTimeout",
    "MonitorUnreachable",
    "NoBalloonDevice",
    "OnStall",
    "Outcome",
    "OwedSize",
    "OwnMonitorUnavailable",
    "Phase",
    "PiB",
    "Plan",
    "Progress",
    "ProtocolError",
    "QmpBalloonError",
    "ReadRates",
    "ReclaimOutcome",
    "ReclaimReport",
    "ResizeResult",
    "Sample",
    "Sampler",
    "Snapshot",
    "Stage",
    "StallKind",
    "StallLimits",
    "StatsTimeout",
    "StatsUnavailable",
    "TcpAddress",
    "TiB",
    "Timeline",
    "TrioMonitor",
    "UnixAddress",
    "UnsafeTarget",
    "UntrustedMonitor",
    "Vm",
    "VmInfo",
    "__version__",
    "find_balloon",
    "find_peer_pid",
    "find_qemu_pid",
    "format_size",
    "make_command_error",
    "open_balloon",
    "open_monitor",
    "parse_address",
    "parse_size",
    "parse_vm",
    "read_resident",
]
