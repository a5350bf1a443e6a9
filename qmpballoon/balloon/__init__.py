"""A VM's balloon: asking a guest for memory, and giving it back.

Everything here is written against :class:`~qmpballoon.monitor.Monitor` and nothing
else, so it runs on every event loop, on none, and on a clock of a test's own. Most
users open a :class:`Balloon` through a front end, and find the rest through it.
"""

from qmpballoon.balloon._pressure import PressureLimits
from qmpballoon.balloon._reclaim import ReclaimReport
from qmpballoon.balloon._tracker import StallLimits
from qmpballoon.balloon._working_set import RereadLimits
from qmpballoon.balloon.balloon import Balloon, find_balloon
from qmpballoon.balloon.device import LARGEST_PAGE, PAGE, Device
from qmpballoon.balloon.guard import RESIZE_GUARD, Guard, GuestLimits
from qmpballoon.balloon.results import (
    BalloonInfo,
    Binding,
    Diagnosis,
    DiskReads,
    OnStall,
    Outcome,
    Phase,
    Plan,
    ReadRates,
    ReclaimOutcome,
    ResizeResult,
    Stage,
    StallKind,
    VmInfo,
)
from qmpballoon.balloon.sampling import (
    KEPT,
    Progress,
    Sample,
    Sampler,
    Snapshot,
    Timeline,
)
from qmpballoon.balloon.stats import GuestStats

__all__ = [
    "KEPT",
    "LARGEST_PAGE",
    "PAGE",
    "RESIZE_GUARD",
    "Balloon",
    "BalloonInfo",
    "Binding",
    "Device",
    "Diagnosis",
    "DiskReads",
    "Guard",
    "GuestLimits",
    "GuestStats",
    "OnStall",
    "Outcome",
    "Phase",
    "Plan",
    "PressureLimits",
    "Progress",
    "ReadRates",
    "ReclaimOutcome",
    "ReclaimReport",
    "RereadLimits",
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
]
